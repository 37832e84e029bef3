"""OutputParser: from the text of an answer, piece by piece, to its reasoning, its content and its tool calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from phloem.serve.text.formats.body import Body, new_body
from phloem.serve.text.formats.literal import JSON_SPACE, Literal
from phloem.serve.text.formats.reasoning import ReasoningSplitter, overlap
from phloem.serve.text.formats.spec import ReasoningFormat, ToolFormat


class Content(msgspec.Struct, frozen=True):
    """Text for the reader."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """Text of the reasoning."""

    text: str


class CallStart(msgspec.Struct, frozen=True):
    """The next call; calls are counted from 0."""

    index: int
    name: str


class Arguments(msgspec.Struct, frozen=True):
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


NO_TEXTS: Mapping[str, frozenset[str]] = {}

Event = Content | Reasoning | CallStart | Arguments


class OutputParser:
    """One choice's answer. `tools` and `reasoning` None: not looked for. `reasoning_has_begun`: the prompt opened it.

    The events' concatenation does not depend on how the text was cut into pieces. Nothing is an error: what only looks
    like a call becomes content; a call whose arguments turn out not to be JSON keeps what was read of them, and the
    rest becomes content.
    """

    def __init__(
        self,
        *,
        tools: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        reasoning_has_begun: bool = False,
        names: frozenset[str] = frozenset(),
        texts: Mapping[str, frozenset[str]] = NO_TEXTS,
    ) -> None:
        self._splitter = None if reasoning is None else ReasoningSplitter(reasoning, has_begun=reasoning_has_begun)
        self._calls = None if tools is None else CallReader(tools, names=names, texts=texts)

    def feed(self, text: str) -> list[Event]:
        """What `text` makes certain."""
        if self._splitter is None:
            return list(self._rest(text))
        reasoning, rest = self._splitter.feed(text)
        return [*_reasoning(reasoning), *self._rest(rest)]

    def finish(self) -> list[Event]:
        """The answer is over: what was still held back."""
        reasoning, rest = ("", "") if self._splitter is None else self._splitter.finish()
        events = [*_reasoning(reasoning), *self._rest(rest)]
        return events if self._calls is None else [*events, *self._calls.finish()]

    def _rest(self, text: str) -> Iterator[Event]:
        if self._calls is not None:
            yield from self._calls.feed(text)
        elif text:
            yield Content(text)


def _reasoning(text: str) -> list[Event]:
    return [Reasoning(text)] if text else []


class CallReader:
    """Content and calls of an answer without its reasoning. Free text is searched for the format's trigger; from there
    on each character goes to the part of the call that is expected next. `_raw` is what has to become content again if
    that part does not come. White space before and between calls is dropped."""

    def __init__(
        self, format: ToolFormat, *, names: frozenset[str], texts: Mapping[str, frozenset[str]] = NO_TEXTS
    ) -> None:
        self._format, self._names, self._texts = format, names, texts
        self._opening = Literal("")
        self._between: list[tuple[Literal, Callable[[], None]]] = []
        self._body: Body = new_body(format, texts)
        self._read: Callable[[str], Iterator[Event]] | None = self._bare if format.is_bare else None  # None: free text
        self._raw = ""
        self._index = -1
        self._is_open = False  # the current call was announced
        self._is_after_call = False  # nothing but white space since

    def feed(self, text: str) -> Iterator[Event]:
        """What `text` makes certain."""
        position = 0
        while position < len(text):
            if self._read is None:
                position, content = self._free(text, position)
                yield from content
            else:
                yield from self._read(text[position])
                position += 1

    def finish(self) -> Iterator[Event]:
        """What was held back, as content; white space after the last call is dropped."""
        if self._is_open and (rest := self._body.rest):
            yield Arguments(self._index, rest)
        held, self._raw = self._held(), ""
        if held and not (self._is_after_call and held.isspace()):
            yield Content(held)

    def _free(self, text: str, position: int) -> tuple[int, list[Event]]:
        """Read free text from `position` up to a trigger; (where it ends, the content in it)."""
        trigger, num_held = self._format.trigger, len(self._raw)
        known = self._raw + text[position:]
        found = known.find(trigger)
        if found < 0:
            return len(text), self._content(known, num_certain=len(known) - overlap(known, trigger))
        content = self._content(known[:found], num_certain=found)
        self._raw += trigger
        opening = self._format.begin + self._format.call_begin
        self._begin_call(opening[len(trigger) :])
        return position + found + len(trigger) - num_held, content

    def _content(self, known: str, *, num_certain: int) -> list[Event]:
        """Emit the certain part of `known` without the white space at its end, and hold the rest back."""
        num_sent = len(known[:num_certain].rstrip())
        self._raw = known[num_sent:]
        if not num_sent:
            return []
        self._is_after_call = False
        return [Content(known[:num_sent])]

    def _fail(self, character: str) -> Iterator[Event]:
        """No call, or no more of it: what was read since the last certain thing is free text, as is the rest."""
        known, self._raw, self._read, self._is_open = self._held(), "", None, False
        yield from self._content(known, num_certain=len(known))
        yield from self.feed(character)

    def _held(self) -> str:
        return self._raw + self._body.held if self._is_open else self._raw

    def _bare(self, character: str) -> Iterator[Event]:
        """The beginning of an answer that may be a call without a trigger."""
        if character == "{":
            self._begin_call("")
            yield from self._call(character)
        elif character in JSON_SPACE:
            self._raw += character
        else:
            yield from self._fail(character)

    def _begin_call(self, opening: str) -> None:
        self._opening = Literal(opening)
        self._body = new_body(self._format, self._texts)
        self._is_open = False
        self._read = self._call if self._opening.is_done else self._open

    def _open(self, character: str) -> Iterator[Event]:
        if not self._opening.push(character):
            yield from self._fail(character)
            return
        self._raw += character
        if self._opening.is_done:
            self._read = self._call

    def _call(self, character: str) -> Iterator[Event]:
        news = self._body.push(character)
        name = self._body.opened
        if news is None or not self._may_open(name):
            yield from self._fail(character)
            return
        if name is None:
            self._raw += character
            return
        if not self._is_open:
            self._index, self._is_open, self._is_after_call, self._raw = self._index + 1, True, True, ""
            yield CallStart(self._index, name)
        if news:
            yield Arguments(self._index, news)
        if self._body.is_done:
            self._end_call()

    def _may_open(self, name: str | None) -> bool:
        """A bare JSON object is a call only if it names a function."""
        return name is None or self._is_open or not self._format.is_bare or name in self._names

    def _end_call(self) -> None:
        """The call's end, or what may follow a call whose end was forgotten."""
        self._is_open = False
        end = Literal(self._format.call_end)
        self._expect_more()
        if not end.is_done:
            self._between.insert(0, (end, self._expect_more))

    def _expect_more(self) -> None:
        """Another call, or the end of the section."""
        format, self._raw = self._format, ""
        self._between = [(Literal(format.separator + format.call_begin), lambda: self._begin_call(""))]
        if format.end:
            self._between.append((Literal(format.end), self._end_section))
        self._read = self._follow

    def _end_section(self) -> None:
        self._raw, self._read = "", None

    def _follow(self, character: str) -> Iterator[Event]:
        self._between = [(literal, then) for literal, then in self._between if literal.push(character)]
        if not self._between:
            yield from self._fail(character)
            return
        self._raw += character
        for literal, then in self._between:
            if literal.is_done:
                then()
                return
