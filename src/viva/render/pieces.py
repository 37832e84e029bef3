"""A bank's prose as pieces: plain text, code between backticks, emphasis, markers of citations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

Kind = Literal["text", "code", "strong", "marker"]

MARKER = re.compile(r"\[c[0-9]+(?:\s*[,，、]\s*c[0-9]+)*\]")
PIECE = re.compile(
    rf"(?P<code>`[^`\n]+`)|(?P<marker>{MARKER.pattern})|(?P<strong>\*\*[^*\n]+\*\*)",
)
CJK = r"[\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]"
FOLDED_SPACE = re.compile(rf"(?<={CJK}) +(?={CJK})")  # what a folded YAML scalar leaves at the end of a Chinese line


class Piece(msgspec.Struct, frozen=True):
    """`text` is without its delimiters; `ids` are a marker's citations."""

    kind: Kind
    text: str
    ids: tuple[str, ...] = ()


def pieces(text: str) -> Iterator[Piece]:
    """The pieces of one paragraph, in order; nothing is lost."""
    end = 0
    for match in PIECE.finditer(text):
        if match.start() > end:
            yield Piece("text", text[end : match.start()])
        whole = match[0]
        if match["code"]:
            yield Piece("code", whole[1:-1])
        elif match["strong"]:
            yield Piece("strong", whole[2:-2])
        else:
            yield Piece("marker", whole, tuple(re.findall(r"c[0-9]+", whole)))
        end = match.end()
    if end < len(text):
        yield Piece("text", text[end:])


def paragraphs(text: str) -> list[str]:
    """Banks write a paragraph a line; empty lines between them carry nothing."""
    return [tidy(line) for line in text.splitlines() if line.strip()]


def tidy(text: str) -> str:
    """One line, without spaces between Chinese characters."""
    return FOLDED_SPACE.sub("", " ".join(text.split()))


def plain(text: str) -> str:
    """Without markers and delimiters: for a title of a window, a card, a terminal."""
    return tidy("".join(piece.text for piece in pieces(text) if piece.kind != "marker"))
