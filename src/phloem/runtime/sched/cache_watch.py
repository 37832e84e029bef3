"""The prefix index as others may follow it: a snapshot, then numbered changes. Costs nothing while nobody does."""

from __future__ import annotations

from phloem.core.wire import CacheChange, Event
from phloem.memory.ledger.ledger import Ledger


class CacheWatch:
    """Numbers what the ledger's journal has. One for all followers: who asks anew gives everybody a snapshot."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_on = False
        self._sequence = 0

    def turn(self, on: bool) -> list[Event]:
        """Start (again) with a snapshot, or stop."""
        self._is_on = on
        if not on:
            self._ledger.unfollow()
            return []
        self._ledger.follow()
        return [self._number(*self._ledger.take_changes(), is_snapshot=True)]

    def changes(self) -> list[Event]:
        """What changed since the last time, if anything did."""
        if not self._is_on:
            return []
        inserted, evicted = self._ledger.take_changes()
        return [self._number(inserted, evicted, is_snapshot=False)] if inserted or evicted else []

    def _number(self, inserted: tuple[int, ...], evicted: tuple[int, ...], *, is_snapshot: bool) -> CacheChange:
        self._sequence += 1
        return CacheChange(self._sequence, self._ledger.page_size, inserted, evicted, is_snapshot)
