"""A fact: what the source says, where, and which names it uses."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from viva.bank.cite import quote_hash
from viva.bank.schema import Citation
from viva.index.facts import Symbol
from viva.index.store import Store

TEST_FOLDERS = ("/test/", "/tests/", "test/", "tests/", "/benchmark/", "benchmark/")


class Span(msgspec.Struct, frozen=True):
    """Lines of a file, from 1, both inclusive."""

    file: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.file}:{self.first}-{self.last}"


class Fact(msgspec.Struct, frozen=True):
    """One thing a question can be derived from. `names` are the identifiers a text about it may use; `score` orders
    the facts of one topic."""

    topic: str
    symbol: str
    title: str
    spans: tuple[Span, ...]
    names: tuple[str, ...] = ()
    detail: tuple[str, ...] = ()
    score: float = 0.0


def whole(symbol: Symbol, *, max_lines: int = 60) -> Span:
    """A symbol's lines, or the first of them."""
    return Span(symbol.file, symbol.begin, min(symbol.end, symbol.begin + max_lines - 1))


def is_test(path: str) -> bool:
    return any(path.startswith(folder) or (folder.startswith("/") and folder in path) for folder in TEST_FOLDERS)


def citations(facts: Iterable[Fact], store: Store, *, source: str) -> list[Citation]:
    """The spans of facts as citations `c1`, `c2`, ..., each span once, quote and hash filled."""
    spans = dict.fromkeys(span for fact in facts for span in fact.spans)
    found: list[Citation] = []
    for span in spans:
        lines = store.lines(span.file)
        first, last = _without_blank_ends(lines, span)
        quote = "\n".join(lines[first - 1 : last])
        found.append(
            Citation(
                id=f"c{len(found) + 1}", source=source, file=span.file, lines=(first, last),
                sha256=quote_hash(quote), quote=quote,
            )
        )  # fmt: skip
    return found


def _without_blank_ends(lines: list[str], span: Span) -> tuple[int, int]:
    first, last = span.first, min(span.last, len(lines))
    while first < last and not lines[first - 1].strip():
        first += 1
    while last > first and not lines[last - 1].strip():
        last -= 1
    return first, last
