"""The prefix index: a radix tree over tokens whose edges are one page long.

A node is one page, keyed by the tokens in it. Whole pages are found by hashing, one dictionary look-up a page. Only the
last step of a walk may end inside a page; there the child that shares most tokens is a neighbour in sorted order, found
by bisection. An edge never splits, so a page is one node and the unit of sharing, eviction and copy on write.
Method: RadixAttention (Zheng et al., SGLang, 2023, section 3), with the page as its stride and the token as its grain.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from phloem.memory.ledger.keys import BYTES_PER_TOKEN, common_tokens

NO_PAGE = -1


class Node:
    """One page of cached tokens. A node whose key is shorter than a page has no children; a root holds no page."""

    __slots__ = ("children", "key", "last_used", "namespace", "order", "page", "parent")

    def __init__(self, *, key: bytes, page: int, parent: Node | None, namespace: str) -> None:
        self.key = key
        self.page = page
        self.parent = parent
        self.namespace = namespace
        self.children: dict[bytes, Node] = {}
        self.order: list[bytes] = []  # the children's keys, sorted
        self.last_used = 0

    @property
    def is_attached(self) -> bool:
        """Whether the node is (still) in the index."""
        return self.parent is not None


class Walk(NamedTuple):
    """How far a key leads into the index: whole pages, then perhaps the first `num_partial` tokens of another page."""

    path: tuple[Node, ...]
    partial: Node | None
    num_partial: int


class Follower(Protocol):
    """Told of every whole page that comes and goes."""

    def insert(self, node: Node) -> None: ...
    def remove(self, node: Node) -> None: ...


class RadixIndex:
    """Namespaces of page trees. Knows tokens and page numbers; nothing of leases."""

    def __init__(self, *, page_size: int) -> None:
        self._bytes_per_page = page_size * BYTES_PER_TOKEN
        self._follower: Follower | None = None
        self._roots: dict[str, Node] = {}
        self.num_nodes = 0

    def walk(self, key: bytes, namespace: str) -> Walk:
        """The longest cached prefix of `key`, at token granularity."""
        node = self._roots.get(namespace)
        if node is None:
            return Walk((), None, 0)
        path: list[Node] = []
        width = self._bytes_per_page
        for start in range(0, len(key), width):
            piece = key[start : start + width]
            child = node.children.get(piece) if len(piece) == width else None
            if child is None:
                return Walk(tuple(path), *self.nearest(node, piece))
            path.append(child)
            node = child
        return Walk(tuple(path), None, 0)

    def nearest(self, parent: Node, key: bytes) -> tuple[Node | None, int]:
        """The child that shares most leading tokens with `key`, and how many; (None, 0) if none shares any."""
        order = parent.order
        place = bisect_left(order, key)
        best, most = None, 0
        for neighbour in order[max(0, place - 1) : place + 1]:
            num_common = common_tokens(neighbour, key)
            if num_common > most:
                best, most = parent.children[neighbour], num_common
        return best, most

    def root(self, namespace: str) -> Node:
        """The root of a namespace, made when missing. It vanishes with its last child: do not keep it."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(key=b"", page=NO_PAGE, parent=None, namespace=namespace)
        return root

    def insert(self, parent: Node, key: bytes, page: int) -> Node:
        """A new child of `parent`; its key must not be there yet."""
        assert key not in parent.children, "this key is in the index already"
        node = Node(key=key, page=page, parent=parent, namespace=parent.namespace)
        parent.children[key] = node
        insort(parent.order, key)
        self.num_nodes += 1
        if self._follower is not None and self.is_whole(node):
            self._follower.insert(node)
        return node

    def remove(self, node: Node) -> None:
        """Take a leaf out of the index."""
        parent = node.parent
        assert parent is not None, "the node has left the index already"
        assert not node.children, "only a leaf can be removed"
        if self._follower is not None and self.is_whole(node):
            self._follower.remove(node)
        del parent.children[node.key]
        del parent.order[bisect_left(parent.order, node.key)]
        node.parent = None
        self.num_nodes -= 1
        if parent.page == NO_PAGE and not parent.children:
            del self._roots[parent.namespace]

    def follow(self, follower: Follower | None) -> None:
        """Tell this one of changes from now on, instead of whoever was told before."""
        self._follower = follower

    def is_whole(self, node: Node) -> bool:
        """Whether the node is a full page, which others may continue."""
        return len(node.key) == self._bytes_per_page

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before children."""
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            if node.page != NO_PAGE:
                yield node
            pending.extend(node.children.values())
