"""The ledger's invariants, spelled out. Slow on purpose: nothing here trusts a counter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from phloem.core.plan import PageCopy
from phloem.memory.ledger.holding import Holding
from phloem.memory.ledger.keys import BYTES_PER_TOKEN
from phloem.memory.ledger.radix import NO_PAGE, Node, RadixIndex


class Claim(Protocol):
    """A prefix lease."""

    @property
    def pages(self) -> Sequence[int]: ...


def check_ledger(
    *,
    num_pages: int,
    page_size: int,
    free: Sequence[int],
    leases: Sequence[int],
    node_of: Sequence[Node | None],
    num_cached: int,
    index: RadixIndex,
    holdings: Sequence[Holding],
    prefix_leases: Sequence[Claim],
    copies: Sequence[PageCopy],
) -> None:
    """Raise AssertionError naming the page, node or holding that breaks a rule."""
    _check_pages(num_pages=num_pages, free=free, leases=leases, node_of=node_of, num_cached=num_cached)
    _check_leases(leases=leases, holdings=holdings, prefix_leases=prefix_leases, copies=copies)
    _check_index(page_size=page_size, leases=leases, node_of=node_of, index=index)
    for holding in holdings:
        _check_holding(holding, page_size=page_size)


def _check_pages(
    *, num_pages: int, free: Sequence[int], leases: Sequence[int], node_of: Sequence[Node | None], num_cached: int
) -> None:
    assert len(set(free)) == len(free), "a page is in the free list twice"
    for page in free:
        assert leases[page] == 0, f"free page {page} has {leases[page]} leases"
        assert node_of[page] is None, f"free page {page} is in the index"
    num_leased = sum(1 for count in leases if count)
    cached = [page for page in range(num_pages) if leases[page] == 0 and node_of[page] is not None]
    assert len(cached) == num_cached, f"{len(cached)} pages are cached, the ledger counts {num_cached}"
    total = len(free) + num_leased + len(cached)
    assert total == num_pages, (
        f"free {len(free)} + leased {num_leased} + cached {len(cached)} = {total}, not {num_pages}"
    )


def _check_leases(
    *,
    leases: Sequence[int],
    holdings: Sequence[Holding],
    prefix_leases: Sequence[Claim],
    copies: Sequence[PageCopy],
) -> None:
    expected: Counter[int] = Counter(copy.source for copy in copies)
    for claim in prefix_leases:
        expected.update(claim.pages)
    for holding in holdings:
        expected.update(holding.leased_pages())
    for page, count in enumerate(leases):
        assert count == expected[page], f"page {page} has {count} leases, its holders account for {expected[page]}"


def _check_index(*, page_size: int, leases: Sequence[int], node_of: Sequence[Node | None], index: RadixIndex) -> None:
    num_nodes = 0
    for node in index.nodes():
        num_nodes += 1
        assert node_of[node.page] is node, f"page {node.page} stands in the index twice, or its node is not known"
        assert node.order == sorted(node.children), f"the children of page {node.page} are out of order"
        assert 0 < len(node.key) <= page_size * BYTES_PER_TOKEN, f"page {node.page} has a key of {len(node.key)} bytes"
        if node.children:
            assert len(node.key) == page_size * BYTES_PER_TOKEN, f"partial page {node.page} has children"
        parent = node.parent
        assert parent is not None, f"page {node.page} has no parent"
        assert parent.children[node.key] is node, f"page {node.page} and its parent disagree"
        if leases[node.page] and parent.page != NO_PAGE:
            assert leases[parent.page], f"page {node.page} is leased, but not page {parent.page} above it"
    num_known = sum(1 for node in node_of if node is not None)
    assert num_nodes == index.num_nodes == num_known, f"{num_nodes} nodes, {index.num_nodes} counted, {num_known} known"


def _check_holding(holding: Holding, *, page_size: int) -> None:
    name = f"holding {holding.serial}"
    assert len(set(holding.pages)) == len(holding.pages), f"{name} names a page twice: {holding.pages}"
    assert holding.capacity == len(holding.pages) * page_size, f"{name} counts {holding.capacity} tokens"
    assert holding.num_published <= len(holding.pages), f"{name} published more pages than it has"
    depth, node = 0, holding.cursor
    while node is not None and node.page != NO_PAGE:
        depth, node = depth + 1, node.parent
    assert depth == holding.num_published, f"{name} published {holding.num_published} pages, its cursor is at {depth}"
    if holding.tail is not None:
        assert holding.tail.is_attached, f"the partial page of {name} has left the index"
        assert holding.tail.page == holding.pages[holding.num_published], f"the partial page of {name} is not its own"
