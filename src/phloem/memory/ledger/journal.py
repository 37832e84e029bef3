"""What the prefix index gained and lost, as digests, for somebody who keeps a copy of it elsewhere.

There is a journal only while somebody follows the index. Pages that are not full are left out: they are found by their
tokens, not by a digest. Between two `take`s only the net change counts: a page that came and went was never there.
"""

from __future__ import annotations

from collections.abc import Iterable

from phloem.core.digest import child_digest, root_digest
from phloem.memory.ledger.radix import NO_PAGE, Node


class Journal:
    """Digests of the nodes of one index, and which came and went."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._digests: dict[Node, int] = {}
        self._inserted: dict[int, None] = {}  # in order; a set's order would differ from run to run
        self._evicted: dict[int, None] = {}
        for node in nodes:
            self.insert(node)

    def insert(self, node: Node) -> None:
        """`node`, a whole page whose parent is in the index, was added."""
        digest = self._digests[node] = child_digest(self._parent_digest(node), node.key)
        if digest in self._evicted:
            del self._evicted[digest]
        else:
            self._inserted[digest] = None

    def remove(self, node: Node) -> None:
        """`node` is about to leave the index."""
        digest = self._digests.pop(node)
        if digest in self._inserted:
            del self._inserted[digest]
        else:
            self._evicted[digest] = None

    def take(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(inserted, evicted) since the last time; parents stand before their children among the inserted."""
        change = tuple(self._inserted), tuple(self._evicted)
        self._inserted.clear()
        self._evicted.clear()
        return change

    def _parent_digest(self, node: Node) -> int:
        parent = node.parent
        assert parent is not None
        return root_digest(node.namespace) if parent.page == NO_PAGE else self._digests[parent]
