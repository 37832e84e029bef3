"""Splits an answer into the reasoning at its beginning and the rest, as it comes."""

from __future__ import annotations

from enum import Enum, auto

from phloem.serve.text.formats.spec import ReasoningFormat


class _Where(Enum):
    BEFORE = auto()  # nothing but white space and a part of `begin` so far
    INSIDE = auto()
    BEHIND = auto()  # white space after `end`
    REST = auto()


class ReasoningSplitter:
    """Feed text, get (reasoning, rest). White space at the edges of the reasoning and after its end is dropped.

    `has_begun`: the prompt ends inside the reasoning, as some chat templates write it. Reasoning that is never ended
    is reasoning to the end of the answer; without `begin` at its beginning an answer has none.
    """

    def __init__(self, format: ReasoningFormat, *, has_begun: bool) -> None:
        self._begin, self._end = format.begin, format.end
        self._where = _Where.INSIDE if has_begun else _Where.BEFORE
        self._held = ""
        self._is_empty = True  # no reasoning so far but white space

    def feed(self, text: str) -> tuple[str, str]:
        """(more reasoning, more of the rest)."""
        self._held += text
        reasoning = ""
        if self._where is _Where.BEFORE:
            self._look_for_begin()
        if self._where is _Where.INSIDE:
            reasoning = self._inside()
        if self._where is _Where.BEHIND and (rest := self._held.lstrip()):
            self._held, self._where = rest, _Where.REST
        if self._where is not _Where.REST:
            return reasoning, ""
        rest, self._held = self._held, ""
        return reasoning, rest

    def finish(self) -> tuple[str, str]:
        """What is still held back."""
        held, self._held = self._held, ""
        match self._where:
            case _Where.INSIDE:
                return (held if not self._is_empty else held.lstrip()).rstrip(), ""
            case _Where.BEHIND:
                return "", ""
            case _:
                return "", held

    def _look_for_begin(self) -> None:
        seen = self._held.lstrip()
        if seen.startswith(self._begin):
            self._held, self._where = seen.removeprefix(self._begin), _Where.INSIDE
        elif not self._begin.startswith(seen):
            self._where = _Where.REST

    def _inside(self) -> str:
        if self._is_empty:
            self._held = self._held.lstrip()
            self._is_empty = not self._held
        inside, end, behind = self._held.partition(self._end)
        if end:
            self._held, self._where = behind, _Where.BEHIND
            return inside.rstrip()
        certain = len(self._held[: len(self._held) - overlap(self._held, self._end)].rstrip())
        inside, self._held = self._held[:certain], self._held[certain:]
        return inside


def overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `word`."""
    longest = min(len(text), len(word) - 1)
    return next((length for length in range(longest, 0, -1) if word.startswith(text[-length:])), 0)
