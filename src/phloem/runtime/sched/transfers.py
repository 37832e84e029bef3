"""Pages on their way between replicas: reserved for what arrives, pinned for what leaves.

Unlike a prefix lease such a page cannot yield, as bytes are being written to it or read from it at this moment. So
there are never more of them than a share of the pool, and each ends by a command of its own, whatever became of it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

from phloem.core.digest import shared_namespace
from phloem.core.wire import Computed, Event, Received, Reserve, Reserved, Sent
from phloem.memory.ledger.holding import Holding
from phloem.memory.ledger.keys import encode_tokens
from phloem.memory.ledger.ledger import Ledger, PrefixLease
from phloem.runtime.sched.leases import PrefixLeases
from phloem.runtime.sched.sequence import Sequence

MAX_SHARE = 0.5
"""Of all pages. What would be more is not transferred, but computed where it is needed."""


class _Arrival(NamedTuple):
    holding: Holding
    tokens: tuple[int, ...]
    namespace: str
    first_page: int


class PageTransfers:
    """Changed by the scheduler's commands and the residents, the ledger's only caller."""

    def __init__(self, ledger: Ledger, *, leases: PrefixLeases) -> None:
        self._ledger = ledger
        self._leases = leases
        self._max_pages = int(ledger.num_pages * MAX_SHARE)
        self._arrivals: dict[str, _Arrival] = {}
        self._departures: dict[str, PrefixLease] = {}

    @property
    def pages(self) -> set[int]:
        """Pages that a transfer holds."""
        arriving = {page for each in self._arrivals.values() for page in each.holding.pages}
        return arriving.union(*(lease.pages for lease in self._departures.values()))

    @property
    def are_open(self) -> bool:
        """Whether any transfer holds pages."""
        return bool(self._arrivals or self._departures)

    def admit(self, command: Reserve | Received | Sent, *, num_spare: int) -> list[Event]:
        """Begin or end one; `num_spare` pages may be reserved."""
        match command:
            case Reserve(name, tokens, namespace):
                shared = shared_namespace(namespace)
                first, pages = self.reserve(name, tokens, namespace=shared, num_spare=num_spare)
                return [Reserved(name, first, pages)]
            case Received(name, num_pages):
                self.receive(name, num_pages)
            case Sent(request_id):
                self.unpin(request_id)
        return []

    def report(self, sequence: Sequence) -> list[Event]:
        """More whole pages of a prompt are computed: they are kept until they are sent."""
        name, num_whole = sequence.request.submit.request_id, sequence.num_computed // self._ledger.page_size
        tokens = sequence.tokens[: num_whole * self._ledger.page_size]
        pages = self.pin(name, tokens, namespace=sequence.namespace)
        return [Computed(name, pages)] if pages else []

    def reserve(
        self, name: str, tokens: tuple[int, ...], *, namespace: str, num_spare: int
    ) -> tuple[int, tuple[int, ...]]:
        """Lease pages for the whole pages of `tokens` that are not cached: (how many are, the pages for the rest). No
        pages where all is cached, or where they would be more than `num_spare` or the share."""
        ledger, size = self._ledger, self._ledger.page_size
        key, num_pages = encode_tokens(tokens), len(tokens) // size
        num_cached = ledger.match(key, namespace=namespace, max_tokens=num_pages * size).num_tokens // size
        num_new = num_pages - num_cached
        is_too_much = num_new > num_spare or len(self.pages) + num_pages > self._max_pages
        if name in self._arrivals or num_new <= 0 or is_too_much:
            return num_cached, ()
        whole = ledger.match(key, namespace=namespace, max_tokens=num_cached * size)
        holding, copy = ledger.open(whole, namespace=namespace)
        assert copy is None, "a match of whole pages copies none"
        pages = ledger.grow(holding, min(num_new, ledger.num_available))
        self._arrivals[name] = _Arrival(holding, tokens, namespace, num_cached)
        return num_cached, pages

    def receive(self, name: str, num_pages: int) -> None:
        """The first `num_pages` reserved pages are filled: they are cached, the others free. What is
        cached now stays leased under `name` until its request has found it."""
        arrival = self._arrivals.pop(name)
        tokens = arrival.tokens[: (arrival.first_page + num_pages) * self._ledger.page_size]
        self._ledger.publish(arrival.holding, tokens, len(tokens))
        self._ledger.close(arrival.holding)
        if num_pages:
            self._leases.take(name, tokens, namespace=arrival.namespace, priority=0)

    def pin(self, name: str, tokens: Seq[int], *, namespace: str) -> tuple[int, ...]:
        """Keep the pages of what is computed of a prompt until `unpin`; those pages, none where the share is spent."""
        match = self._ledger.match(encode_tokens(tokens), namespace=namespace, max_tokens=len(tokens))
        before = self._departures.pop(name, None)
        lease = self._ledger.lease(match)
        if before is not None:
            self._ledger.end_lease(before)
        self._departures[name] = lease
        if len(self.pages) > self._max_pages:
            self.unpin(name)
            return ()
        return lease.pages

    def unpin(self, name: str) -> None:
        """They are sent, or nobody wants them any more."""
        if (lease := self._departures.pop(name, None)) is not None:
            self._ledger.end_lease(lease)
