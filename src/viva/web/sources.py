"""The files of a bank's sources as pages: what the indexes hold, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

from viva.bank.load import Bank
from viva.bank.schema import Citation
from viva.errors import LookupFailed
from viva.index.store import Store
from viva.render.highlight import highlighted, numbered
from viva.render.page import CitedSpan, source_page
from viva.render.pieces import plain
from viva.render.words import pinned

CONTEXT_LINES = 14  # shown around the cited ones in the drawer
FILES_KEPT = 32


class SourcePages:
    """Pages of the indexed files. A path is looked up in an index; the file system is never asked."""

    def __init__(self, bank: Bank, stores: Mapping[str, Store]) -> None:
        self._bank, self._stores = bank, stores
        self._highlighted = lru_cache(maxsize=FILES_KEPT)(self._read)

    def link(self, citation: Citation) -> str | None:
        """Where the cited lines are on this server; None if their source is not at hand."""
        store = self._stores.get(citation.source)
        if store is None or not store.has_file(citation.file):
            return None
        first, last = citation.lines
        return f"/source/{citation.source}/{quote(citation.file)}?lines={first}-{last}"

    def page(self, source_id: str, path: str, hit: tuple[int, int] | None) -> str:
        """LookupFailed if no such source or file is indexed, or it has no such lines."""
        lines = self._lines(source_id, path, hit)
        source = self._bank.source(source_id)
        name = pinned(source) if source else source_id
        return source_page(lines, path=path, source=name, hit=hit, cited=self._cited(source_id, path))

    def fragment(self, source_id: str, path: str, hit: tuple[int, int]) -> str:
        """The cited lines with some before and after them."""
        lines = self._lines(source_id, path, hit)
        first = max(1, hit[0] - CONTEXT_LINES)
        return numbered(lines[first - 1 : hit[1] + CONTEXT_LINES], first=first, hit=hit)

    def _lines(self, source_id: str, path: str, hit: tuple[int, int] | None) -> tuple[str, ...]:
        lines = self._highlighted(source_id, path)
        if hit and not 1 <= hit[0] <= hit[1] <= len(lines):
            raise LookupFailed(f"{path} has lines 1 to {len(lines)}, not {hit[0]} to {hit[1]}", field="lines")
        return lines

    def _read(self, source_id: str, path: str) -> tuple[str, ...]:
        store = self._stores.get(source_id)
        if store is None or not store.has_file(path):
            raise LookupFailed(f"no file {path!r} in an indexed source {source_id!r}", field="path")
        return tuple(highlighted("\n".join(store.lines(path)), name=path))

    def _cited(self, source_id: str, path: str) -> list[CitedSpan]:
        spans = []
        for number, question in enumerate(self._bank.questions, start=1):
            for citation in question.citations:
                link = self.link(citation)
                if link and citation.source == source_id and citation.file == path:
                    title = plain(question.title)
                    spans.append(CitedSpan(question.id, number, title[:60], *citation.lines, link))
        return sorted(spans, key=lambda span: (span.first, span.number))
