"""One sequence's block table, and how much of it the index knows."""

from __future__ import annotations

from collections.abc import Iterator

from phloem.memory.ledger.radix import Node


class Holding:
    """Changed by the ledger only; the scheduler reads `pages`, `capacity` and `num_hit_tokens`.

    `cursor` is the index node of the last published page; `tail` the node of a published partial page; `twins` are
    pages of other sequences that hold the same tokens and stand in the index where this holding's own pages would.
    """

    __slots__ = (
        "_page_size",
        "capacity",
        "cursor",
        "namespace",
        "num_hit_tokens",
        "num_published",
        "pages",
        "serial",
        "tail",
        "twins",
    )

    def __init__(self, *, serial: int, namespace: str, path: tuple[Node, ...], page_size: int) -> None:
        self.serial = serial
        self.namespace = namespace
        self.pages: list[int] = [node.page for node in path]
        self.twins: dict[int, int] = {}  # by place in the block table
        self.num_published = len(path)
        self.cursor: Node | None = path[-1] if path else None
        self.tail: Node | None = None
        self._page_size = page_size
        self.capacity = len(path) * page_size  # tokens
        self.num_hit_tokens = self.capacity

    def append(self, pages: tuple[int, ...]) -> None:
        """New, empty pages at the end."""
        self.pages.extend(pages)
        self.capacity += len(pages) * self._page_size

    def append_copy(self, page: int, num_tokens: int) -> None:
        """A page whose first `num_tokens` tokens are copied from a cached one."""
        self.append((page,))
        self.num_hit_tokens += num_tokens

    def add_twin(self, page: int) -> None:
        """A leased page of the index that stands for one of this holding's own."""
        self.twins[self.num_published] = page

    def advance(self, node: Node) -> None:
        """The next page is published, at `node`."""
        self.cursor = node
        self.num_published += 1

    def leased_pages(self) -> Iterator[int]:
        """Every lease this holding has, the deepest first."""
        for place in range(len(self.pages) - 1, -1, -1):
            yield self.pages[place]
            if place in self.twins:
                yield self.twins[place]
