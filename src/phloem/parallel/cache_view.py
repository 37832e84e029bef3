"""What a router believes a replica's cache holds: pages by digest (core.digest), from its own events or, where
it sends none, from what was sent to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from phloem.core.wire import CacheChange

MAX_REMEMBERED = 1 << 16
"""Pages remembered as sent to a replica without events; it may have evicted them, nobody can tell."""


class StaleView(Exception):
    """A change does not follow the one before: something was lost, and only a snapshot helps."""


class CacheView:
    """The pages of one replica, and those that requests on their way to it are about to leave there.

    A page is named by its whole prefix, so that the set of names is the radix tree: the cached prefix of a prompt is as
    long as its first pages are in the set.
    """

    def __init__(self, *, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._pages: set[int] = set()  # asked for membership and size only
        self._expected: Counter[int] = Counter()
        self._sent: dict[int, None] = {}  # the last one sent stands last
        self._sequence: int | None = None
        self.page_size: int | None = None

    @property
    def is_followed(self) -> bool:
        """Whether the replica's events are what this rests on."""
        return self._sequence is not None

    @property
    def num_pages(self) -> int:
        """Pages believed to be there."""
        return len(self._pages) if self.is_followed else len(self._sent)

    def apply(self, change: CacheChange) -> None:
        """Take in one event. StaleView, and the view is void, if one before it is missing."""
        if change.is_snapshot:
            self._pages = set(change.inserted)
            self._sent.clear()
            self.page_size = change.page_size
        elif self._sequence is None or change.sequence != self._sequence + 1:
            expected = "a snapshot" if self._sequence is None else f"change {self._sequence + 1}"
            self.forget()
            raise StaleView(f"change {change.sequence} came instead of {expected}")
        else:
            self._pages.update(change.inserted)
            self._pages.difference_update(change.evicted)
        self._sequence = change.sequence

    def forget(self) -> None:
        """The replica or its events are gone: nothing is known any more."""
        self._pages.clear()
        self._sent.clear()
        self._sequence = None

    def num_cached(self, digests: Iterable[int]) -> int:
        """How many leading pages of a prompt are there, or will be when what is under way has been computed."""
        count = 0
        for digest in digests:
            if digest not in self._pages and digest not in self._expected and digest not in self._sent:
                break
            count += 1
        return count

    def expect(self, digests: Sequence[int]) -> None:
        """A request with these pages was sent."""
        self._expected.update(digests)

    def settle(self, digests: Sequence[int], *, was_computed: bool) -> None:
        """That request is over. Without events, what was computed is remembered, the longest unused first to go."""
        for digest in digests:
            self._expected[digest] -= 1
            if self._expected[digest] <= 0:
                del self._expected[digest]
        if self.is_followed or not was_computed:
            return
        for digest in digests:
            self._sent.pop(digest, None)
            self._sent[digest] = None
        while len(self._sent) > self._max_remembered:
            del self._sent[next(iter(self._sent))]
