"""Which cached page goes first when a new one is wanted: a policy over leaves that nobody leases."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from phloem.memory.ledger.radix import Node


class EvictionPolicy(Protocol):
    """Told of every node that becomes an unleased leaf; asked for the next victim."""

    def offer(self, node: Node) -> None:
        """`node` may now be evicted; `node.last_used` is set."""

    def take(self, is_evictable: Callable[[Node], bool]) -> Node:
        """The next victim among the nodes offered that are still evictable; there is at least one."""


class LruEviction:
    """Least recently used first. A node has at most one entry, re-dated when it surfaces: the heap never outgrows the
    index."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Node]] = []  # (last used, order of offering, node)
        self._queued: set[Node] = set()  # asked for membership only
        self._num_offers = 0

    def offer(self, node: Node) -> None:
        """Remember `node` at its present age, unless it is remembered already."""
        if node not in self._queued:
            self._queued.add(node)
            self._num_offers += 1
            heapq.heappush(self._heap, (node.last_used, self._num_offers, node))

    def take(self, is_evictable: Callable[[Node], bool]) -> Node:
        """The evictable node used longest ago."""
        while True:
            last_used, _, node = heapq.heappop(self._heap)
            self._queued.remove(node)
            if not is_evictable(node):
                continue
            if node.last_used == last_used:
                return node
            self.offer(node)
