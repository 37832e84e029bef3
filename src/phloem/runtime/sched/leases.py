"""Prefixes that somebody will come back for: leased by name when a request ends, until they are released.

A program's branch says something, thinks, and says more: between its requests no sequence holds what it said. A lease
does, so that the branch finds it again however much was computed meanwhile. A request that waits for room waits for
leases as it does for sequences that run; but they yield before one of those is preempted, and when nothing runs, so
they are never the reason that nothing moves. Lowest priority first, then the one made last: what began first can end.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from phloem.core.wire import Event
from phloem.memory.ledger.keys import encode_tokens
from phloem.memory.ledger.ledger import Ledger, PrefixLease

MAX_SHARE = 0.5
"""Of all pages. What would be more is not leased, but cached like everything else."""


class _Entry(NamedTuple):
    rank: tuple[int, int]  # the largest yields first
    lease: PrefixLease


class PrefixLeases:
    """Changed by the residents, the ledger's only caller."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._max_pages = int(ledger.num_pages * MAX_SHARE) if ledger.retains else 0
        self._entries: dict[str, _Entry] = {}
        self._order: list[tuple[tuple[int, int], str]] = []  # sorted
        self._pages: Counter[int] = Counter()
        self._num_made = 0

    @property
    def num_pages(self) -> int:
        """Pages with at least one prefix lease."""
        return len(self._pages)

    @property
    def pages(self) -> set[int]:
        """Those pages."""
        return set(self._pages)

    def take(self, name: str, tokens: Sequence[int], *, namespace: str, priority: int) -> None:
        """Lease what is cached of `tokens` under `name`, if that is more than it has now and the share allows it."""
        entry = self._entries.get(name)
        num_before = entry.lease.num_tokens if entry else 0
        match = self._ledger.match(encode_tokens(tokens), namespace=namespace, max_tokens=len(tokens))
        num_new = sum(1 for page in match.pages if page not in self._pages)
        if match.num_tokens <= num_before or len(self._pages) + num_new > self._max_pages:
            return
        lease = self._ledger.lease(match)
        self._pages.update(lease.pages)
        if entry is not None:
            self._end(entry.lease)
            self._entries[name] = _Entry(entry.rank, lease)
            return
        rank = (-priority, self._num_made)
        self._num_made += 1
        self._entries[name] = _Entry(rank, lease)
        insort(self._order, (rank, name))

    def release(self, names: Iterable[str]) -> list[Event]:
        """End these leases, those that there are. Nobody is told: there are no events."""
        for name in names:
            if (entry := self._entries.pop(name, None)) is not None:
                del self._order[bisect_left(self._order, (entry.rank, name))]
                self._end(entry.lease)
        return []

    def yield_last(self) -> bool:
        """Somebody needs room: end the lease that yields first. False when there is none."""
        if not self._order:
            return False
        self.release([self._order[-1][1]])
        return True

    def _end(self, lease: PrefixLease) -> None:
        self._ledger.end_lease(lease)
        for page in lease.pages:
            self._pages[page] -= 1
            if not self._pages[page]:
                del self._pages[page]
