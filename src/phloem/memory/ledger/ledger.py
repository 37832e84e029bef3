"""The ledger: every KV page is free, leased or cached, and this is where that is written down.

    free ---- grow ----> leased ---- close, tokens published ----> cached
     ^                     |  ^                                     |  |
     `---- close, not published  `------------- open (a hit) -------'  |
     `------------------------------- evicted -------------------------'

A *holding* is one sequence's block table. Its pages are leased once by it; a page shared by five sequences has five
leases. A page whose last lease is gone is cached if the index knows its tokens, else free. A *prefix lease* is a claim
on cached pages without a sequence: somebody will come back for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from phloem.core.plan import PageCopy
from phloem.memory.ledger.check import check_ledger
from phloem.memory.ledger.eviction import EvictionPolicy, LruEviction
from phloem.memory.ledger.holding import Holding
from phloem.memory.ledger.journal import Journal
from phloem.memory.ledger.keys import BYTES_PER_TOKEN, encode_tokens
from phloem.memory.ledger.radix import NO_PAGE, Node, RadixIndex, Walk


class LedgerStats(NamedTuple):
    """Gauges of now (pages; free + leased + cached = total) and counters since start (tokens, pages)."""

    num_pages: int
    num_free: int
    num_leased: int
    num_cached: int
    num_hit_tokens: int
    num_evicted: int


class Match(NamedTuple):
    """A cached prefix, found but not leased: valid until the next call that changes the ledger."""

    num_tokens: int
    num_leased_pages: int
    walk: Walk

    @property
    def pages(self) -> tuple[int, ...]:
        """Those it was found on; the last one perhaps in part."""
        path, partial, _ = self.walk
        return tuple(node.page for node in (path if partial is None else (*path, partial)))


class PrefixLease(NamedTuple):
    """Pages of a prefix that stay until it ends, the first page first; the last one perhaps in part."""

    serial: int
    num_tokens: int
    pages: tuple[int, ...]


NO_MATCH = Match(0, 0, Walk((), None, 0))


class Ledger:
    """Pages, leases and the prefix index of one pool. `retain=False` frees a page with its last lease: the living
    share, nothing is kept."""

    def __init__(
        self, *, num_pages: int, page_size: int, retain: bool = True, eviction: EvictionPolicy | None = None
    ) -> None:
        assert min(num_pages, page_size) > 0
        self.num_pages = num_pages
        self.page_size = page_size
        self.retains = retain
        self._eviction: EvictionPolicy = LruEviction() if eviction is None else eviction
        self._index = RadixIndex(page_size=page_size)
        self._free = list(range(num_pages - 1, -1, -1))  # a stack, lowest page on top
        self._leases = [0] * num_pages
        self._node_of: list[Node | None] = [None] * num_pages
        self._holdings: dict[int, Holding] = {}
        self._prefix_leases: dict[int, PrefixLease] = {}
        self._copies: list[PageCopy] = []  # unsettled; their sources are leased
        self._journal: Journal | None = None  # only while somebody follows
        self._num_opened = 0
        self._num_cached = 0
        self._num_hit_tokens = 0
        self._num_evicted = 0

    # -- asking

    @property
    def num_available(self) -> int:
        """Pages that `grow` can hand out now: free ones and cached ones that nobody leases."""
        return len(self._free) + self._num_cached

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def match(self, key: bytes, *, namespace: str, max_tokens: int) -> Match:
        """The longest cached prefix of the first `max_tokens` of `key` (from `encode_tokens`). Changes nothing, no age
        either."""
        walk = self._index.walk(key[: max_tokens * BYTES_PER_TOKEN], namespace)
        num_leased = sum(1 for node in walk.path if self._leases[node.page])
        return Match(len(walk.path) * self.page_size + walk.num_partial, num_leased, walk)

    def stats(self) -> LedgerStats:
        """How the pages stand."""
        num_leased = self.num_pages - self.num_available
        return LedgerStats(
            self.num_pages, len(self._free), num_leased, self._num_cached, self._num_hit_tokens, self._num_evicted
        )

    def check(self) -> None:
        """AssertionError with what is wrong, if the books do not balance. O(pages)."""
        check_ledger(
            num_pages=self.num_pages,
            page_size=self.page_size,
            free=self._free,
            leases=self._leases,
            node_of=self._node_of,
            num_cached=self._num_cached,
            index=self._index,
            holdings=tuple(self._holdings.values()),
            prefix_leases=tuple(self._prefix_leases.values()),
            copies=tuple(self._copies),
        )

    # -- doing

    def open(self, match: Match, *, namespace: str) -> tuple[Holding, PageCopy | None]:
        """Lease a cached prefix for a new sequence: whole pages by reference, a last partial page by copy on write.

        The copy's source stays leased until `settle`. Without a page for the target the partial page is forgone.
        """
        path, partial, num_partial = match.walk
        for node in path:
            self._lease(node.page)
        holding = Holding(serial=self._num_opened, namespace=namespace, path=path, page_size=self.page_size)
        self._num_opened += 1
        self._holdings[holding.serial] = holding
        copy = self._copy_on_write(holding, partial, num_partial) if partial is not None else None
        self._num_hit_tokens += holding.num_hit_tokens
        return holding, copy

    def grow(self, holding: Holding, num_pages: int) -> tuple[int, ...]:
        """Lease `num_pages` (at most `num_available`) new pages at the end of a holding, evicting as needed."""
        assert num_pages <= self.num_available, "grow beyond num_available"
        pages = tuple(self._take_page() for _ in range(num_pages))
        holding.append(pages)
        return pages

    def settle(self, copies: Iterable[PageCopy]) -> None:
        """The step that made these copies is over: return the leases of their sources. To be called before `close`."""
        for copy in copies:
            self._copies.remove(copy)
            self._release(copy.source)

    def publish(self, holding: Holding, tokens: Sequence[int], num_computed: int, *, partial: bool = False) -> None:
        """Let others find what `holding` has computed: its first `num_computed` of `tokens`, whole pages only unless
        `partial`, which adds the last page as far as it is filled."""
        num_full, num_over = divmod(num_computed, self.page_size)
        if num_full > holding.num_published:
            self._withdraw_tail(holding)
            for index in range(holding.num_published, num_full):
                start = index * self.page_size
                self._publish_page(holding, encode_tokens(tokens[start : start + self.page_size]))
        if partial and num_over:
            self._withdraw_tail(holding)
            self._publish_tail(holding, encode_tokens(tokens[num_computed - num_over : num_computed]))

    def close(self, holding: Holding) -> None:
        """Return every lease of a holding, deepest page first. What it published stays cached."""
        del self._holdings[holding.serial]
        for page in holding.leased_pages():
            self._release(page)

    def lease(self, match: Match) -> PrefixLease:
        """Claim a cached prefix for nobody in particular: it is not evicted until `end_lease`."""
        for page in match.pages:
            self._lease(page)
        lease = PrefixLease(self._num_opened, match.num_tokens, match.pages)
        self._num_opened += 1
        self._prefix_leases[lease.serial] = lease
        return lease

    def end_lease(self, lease: PrefixLease) -> None:
        """Nobody claims it any more; it stays cached as long as there is room."""
        del self._prefix_leases[lease.serial]
        for page in reversed(lease.pages):
            self._release(page)

    # -- for those who keep a copy of the index elsewhere

    def follow(self) -> None:
        """Keep a journal from now on; the first `take_changes` has every whole page there is."""
        self._journal = Journal(node for node in self._index.nodes() if self._index.is_whole(node))
        self._index.follow(self._journal)

    def unfollow(self) -> None:
        """Keep none."""
        self._journal = None
        self._index.follow(None)

    def take_changes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Digests (core.digest) of whole pages that were inserted and evicted since the last time; none without a
        journal."""
        return ((), ()) if self._journal is None else self._journal.take()

    # -- leases

    def _lease(self, page: int) -> None:
        if self._leases[page] == 0:
            self._num_cached -= 1
        self._leases[page] += 1

    def _release(self, page: int) -> None:
        self._leases[page] -= 1
        assert self._leases[page] >= 0, f"page {page} released more often than leased"
        if self._leases[page]:
            return
        node = self._node_of[page]
        if node is None:
            self._free.append(page)
        elif self.retains:
            self._num_cached += 1
            node.last_used = self._num_opened
            self._offer(node)
        else:
            self._forget(node)
            self._free.append(page)

    def _take_page(self) -> int:
        if not self._free:
            self._evict()
        page = self._free.pop()
        self._leases[page] = 1
        return page

    def _evict(self) -> None:
        node = self._eviction.take(self._is_evictable)
        parent = node.parent
        self._forget(node)
        self._num_cached -= 1
        self._num_evicted += 1
        self._free.append(node.page)
        if parent is not None and parent.page != NO_PAGE:
            self._offer(parent)

    def _offer(self, node: Node) -> None:
        if self._is_evictable(node):
            self._eviction.offer(node)

    def _is_evictable(self, node: Node) -> bool:
        return node.is_attached and not node.children and self._leases[node.page] == 0

    def _forget(self, node: Node) -> None:
        self._index.remove(node)
        self._node_of[node.page] = None

    # -- the index

    def _copy_on_write(self, holding: Holding, partial: Node, num_tokens: int) -> PageCopy | None:
        self._lease(partial.page)
        if not self.num_available:
            self._release(partial.page)
            return None
        copy = PageCopy(source=partial.page, target=self._take_page())
        holding.append_copy(copy.target, num_tokens)
        self._copies.append(copy)
        return copy

    def _publish_page(self, holding: Holding, key: bytes) -> None:
        """Put one full page into the index, or find that another sequence put the same tokens there first: then take
        its place if nobody leases it, else lease it too, so that all above a leased node is leased."""
        parent = holding.cursor or self._index.root(holding.namespace)
        page = holding.pages[holding.num_published]
        node = parent.children.get(key)
        if node is None:
            node = self._index.insert(parent, key, page)
            self._node_of[page] = node
        elif self._leases[node.page] == 0:
            self._adopt(node, page)
        elif node.page != page:
            self._lease(node.page)
            holding.add_twin(node.page)
        holding.advance(node)

    def _adopt(self, node: Node, page: int) -> None:
        self._node_of[node.page] = None
        self._free.append(node.page)
        self._num_cached -= 1
        node.page = page
        self._node_of[page] = node

    def _publish_tail(self, holding: Holding, key: bytes) -> None:
        parent = holding.cursor or self._index.root(holding.namespace)
        near, num_common = self._index.nearest(parent, key)
        if near is None or num_common * BYTES_PER_TOKEN < len(key):
            page = holding.pages[holding.num_published]
            holding.tail = self._node_of[page] = self._index.insert(parent, key, page)

    def _withdraw_tail(self, holding: Holding) -> None:
        if holding.tail is not None:
            self._forget(holding.tail)
            holding.tail = None
