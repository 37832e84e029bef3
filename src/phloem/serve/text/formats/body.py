"""The inside of one call: finds its name and streams its arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from phloem.serve.text.formats.json_scan import JsonScanner, Mark
from phloem.serve.text.formats.literal import JSON_SPACE, Literal
from phloem.serve.text.formats.spec import ARGUMENT_KEYS, NAME_KEY, ToolFormat
from phloem.serve.text.formats.tagged import TaggedBody

MAX_NAME_CHARACTERS = 256
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/")


class Body(Protocol):
    """One call, read character by character."""

    @property
    def opened(self) -> str | None:
        """The function's name once it is certain that this is a call: the name is known and the arguments began."""

    @property
    def is_done(self) -> bool:
        """Whether the call is complete."""

    @property
    def held(self) -> str:
        """What was read last and is part of nothing yet: text, should the call not go on."""

    @property
    def rest(self) -> str:
        """What is still to be said of the arguments, should the answer end here."""

    def push(self, character: str) -> str | None:
        """What is new of the arguments; None when this cannot be a call, or cannot go on as one."""


def new_body(format: ToolFormat, texts: Mapping[str, frozenset[str]]) -> Body:
    """A reader for the next call. `texts`: by function, its parameters that are texts."""
    if format.argument_tags is not None:
        return TaggedBody(format.argument_tags, texts=texts)
    return NamedBody(name_end=format.name_end) if format.name_end else ObjectBody()


class ObjectBody:
    """{"name": "f", "arguments": {...}}: keys in any order, further ones are ignored, no arguments are {}."""

    held = rest = ""

    def __init__(self) -> None:
        self._json = JsonScanner()
        self._reading: str | None = None  # "key", "name" or "arguments"
        self._text = ""  # of the key or name; arguments that came before the name
        self._key = ""
        self._waiting = ""
        self._name: str | None = None
        self._has_arguments = False

    @property
    def opened(self) -> str | None:
        return self._name if self._has_arguments else None

    @property
    def is_done(self) -> bool:
        return self._json.is_done

    def push(self, character: str) -> str | None:
        was_at, was_in_string = self._json.depth, self._json.is_in_string
        mark = self._json.push(character)
        if mark is Mark.BAD:
            return None
        if mark is Mark.BEGIN and was_at == 1 and not self._begin(character):
            return None
        if self._reading is not None:
            self._text += escaped(character) if was_in_string else character
        if mark is Mark.END and self._json.depth == 1 and not self._end():
            return None
        return self._news() if not self.is_done or self._complete() else None

    def _begin(self, character: str) -> bool:
        """A key or a value of the outer object begins."""
        if self._json.is_key:
            self._reading = "key"
        elif self._key == NAME_KEY and self._name is None:
            self._reading = "name"
            return character == '"'
        elif self._key in ARGUMENT_KEYS and not self._has_arguments:
            self._reading, self._has_arguments = "arguments", True
            return character == "{"
        return True

    def _end(self) -> bool:
        """A key, string, object or list of the outer object ends."""
        reading, self._reading = self._reading, None
        if reading == "key":
            self._key = _string(self._text) or ""
        elif reading == "name":
            self._name = _string(self._text)
        else:
            self._waiting += self._text
        self._text = ""
        return reading != "name" or bool(self._name)

    def _news(self) -> str | None:
        if self._reading in ("key", "name"):
            return "" if len(self._text) <= MAX_NAME_CHARACTERS else None
        self._waiting, self._text = self._waiting + self._text, ""
        if self.opened is None:
            return ""
        news, self._waiting = self._waiting, ""
        return news

    def _complete(self) -> bool:
        if not self._has_arguments:
            self._has_arguments, self._waiting = True, "{}"
        return self._name is not None


class NamedBody:
    """name, `name_end`, {...}."""

    held = rest = ""

    def __init__(self, *, name_end: str) -> None:
        self._name = ""
        self._between = Literal(name_end)
        self._has_name = False
        self._json = JsonScanner()

    @property
    def opened(self) -> str | None:
        return self._name if self._json.depth or self._json.is_done else None

    @property
    def is_done(self) -> bool:
        return self._json.is_done

    def push(self, character: str) -> str | None:
        if not self._has_name:
            if character in NAME_CHARACTERS:
                self._name += character
                return "" if len(self._name) <= MAX_NAME_CHARACTERS else None
            if not self._name:
                return "" if character in JSON_SPACE else None
            self._has_name = True
        if not self._between.is_done:
            return "" if self._between.push(character) else None
        was_in_string = self._json.is_in_string
        if self._json.push(character) is Mark.BAD:
            return None
        if self.opened is None:
            return ""
        return escaped(character) if was_in_string else character


def escaped(character: str) -> str:
    """A character of a JSON string; a raw control character as the escape that it should have been."""
    return json.dumps(character)[1:-1] if character < " " else character


def _string(text: str) -> str | None:
    """The value of a JSON string; None when it is not text (a lone surrogate)."""
    value: str = json.loads(text)
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value
