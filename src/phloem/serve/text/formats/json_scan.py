"""One JSON object (RFC 8259), checked character by character: the first character that cannot stand there is seen."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from phloem.serve.text.formats.literal import JSON_SPACE

ESCAPES = '"\\/bfnrt'
HEX = "0123456789abcdefABCDEF"
DIGITS = "0123456789"
WORDS = {"t": "true", "f": "false", "n": "null"}

_SIGN, _ZERO, _INTEGER, _POINT, _FRACTION, _E, _E_SIGN, _EXPONENT = range(8)
_COMPLETE = frozenset({_ZERO, _INTEGER, _FRACTION, _EXPONENT})
_NUMBER: dict[int, dict[str, int]] = {
    _SIGN: {"0": _ZERO} | dict.fromkeys("123456789", _INTEGER),
    _ZERO: {".": _POINT, "e": _E, "E": _E},
    _INTEGER: dict.fromkeys(DIGITS, _INTEGER) | {".": _POINT, "e": _E, "E": _E},
    _POINT: dict.fromkeys(DIGITS, _FRACTION),
    _FRACTION: dict.fromkeys(DIGITS, _FRACTION) | {"e": _E, "E": _E},
    _E: dict.fromkeys(DIGITS, _EXPONENT) | {"+": _E_SIGN, "-": _E_SIGN},
    _E_SIGN: dict.fromkeys(DIGITS, _EXPONENT),
    _EXPONENT: dict.fromkeys(DIGITS, _EXPONENT),
}


class Mark(Enum):
    """What a character was. END is that of strings, objects and lists; numbers and words end where the next
    thing begins."""

    INSIDE = auto()
    BEGIN = auto()
    END = auto()
    BAD = auto()


class JsonScanner:
    """Reads one object. `depth` counts open brackets; `is_key` says whether the string being read, or just read, is a
    key. Raw control characters in strings are let through: models write line breaks there, and a reader can escape
    them."""

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._read: Callable[[str], Mark] = self._object
        self._number = _SIGN
        self._rest = ""
        self._num_hex = 0
        self.is_key = False
        self.is_done = False

    @property
    def depth(self) -> int:
        return len(self._closers)

    @property
    def is_in_string(self) -> bool:
        """Whether the next character belongs to a string."""
        return self._read in (self._string, self._escape, self._hex)

    def push(self, character: str) -> Mark:
        """The next character. Nothing may follow BAD, nor the end of the object."""
        return self._read(character)

    def _object(self, character: str) -> Mark:
        if character in JSON_SPACE:
            return Mark.INSIDE
        return self._open("}") if character == "{" else Mark.BAD

    def _open(self, closer: str) -> Mark:
        self._closers.append(closer)
        self._read = self._first_key if closer == "}" else self._first_item
        return Mark.BEGIN

    def _close(self) -> Mark:
        self._closers.pop()
        self.is_done = not self._closers
        self._read = self._after
        return Mark.END

    def _first_key(self, character: str) -> Mark:
        return self._close() if character == "}" else self._key(character)

    def _key(self, character: str) -> Mark:
        if character in JSON_SPACE:
            return Mark.INSIDE
        return self._begin_string(is_key=True) if character == '"' else Mark.BAD

    def _begin_string(self, *, is_key: bool) -> Mark:
        self.is_key, self._read = is_key, self._string
        return Mark.BEGIN

    def _string(self, character: str) -> Mark:
        if character == "\\":
            self._read = self._escape
        elif character == '"':
            self._read = self._colon if self.is_key else self._after
            return Mark.END
        return Mark.INSIDE

    def _escape(self, character: str) -> Mark:
        if character == "u":
            self._read, self._num_hex = self._hex, 4
        elif character in ESCAPES:
            self._read = self._string
        else:
            return Mark.BAD
        return Mark.INSIDE

    def _hex(self, character: str) -> Mark:
        if character not in HEX:
            return Mark.BAD
        self._num_hex -= 1
        if not self._num_hex:
            self._read = self._string
        return Mark.INSIDE

    def _colon(self, character: str) -> Mark:
        if character in JSON_SPACE:
            return Mark.INSIDE
        self._read = self._value
        return Mark.INSIDE if character == ":" else Mark.BAD

    def _first_item(self, character: str) -> Mark:
        return self._close() if character == "]" else self._value(character)

    def _value(self, character: str) -> Mark:
        if character in JSON_SPACE:
            return Mark.INSIDE
        self.is_key = False
        if character in "{[":
            return self._open("}" if character == "{" else "]")
        if character == '"':
            return self._begin_string(is_key=False)
        if character in WORDS:
            self._rest, self._read = WORDS[character][1:], self._word
        elif character == "-":
            self._number, self._read = _SIGN, self._digits
        elif character in DIGITS:
            self._number, self._read = (_ZERO if character == "0" else _INTEGER), self._digits
        else:
            return Mark.BAD
        return Mark.BEGIN

    def _word(self, character: str) -> Mark:
        if not self._rest.startswith(character):
            return Mark.BAD
        self._rest = self._rest[1:]
        if not self._rest:
            self._read = self._after
        return Mark.INSIDE

    def _digits(self, character: str) -> Mark:
        following = _NUMBER[self._number].get(character)
        if following is None:
            return self._after(character) if self._number in _COMPLETE else Mark.BAD
        self._number = following
        return Mark.INSIDE

    def _after(self, character: str) -> Mark:
        if character in JSON_SPACE:
            self._read = self._after
            return Mark.INSIDE
        if character == ",":
            self._read = self._key if self._closers[-1] == "}" else self._value
            return Mark.INSIDE
        return self._close() if character == self._closers[-1] else Mark.BAD
