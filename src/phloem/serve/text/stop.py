"""Stop strings: one automaton a request, one integer a stream (Aho and Corasick, 1975).

The state after a text is the longest suffix of it that begins some stop string. That suffix is exactly what a stream
must hold back, and a match is seen at its last character, however the text was cut into tokens. A character costs one
dictionary look-up, whatever the number and length of the strings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from phloem.core.errors import InvalidRequest

MAX_STRINGS = 64
MAX_CHARACTERS = 16_384


@dataclass(frozen=True)
class Scan:
    """The automaton after some text: `state`, and the stop string found with the number of characters up to its end."""

    state: int
    found: str | None = None
    end: int = 0


class StopStrings:
    """An immutable set of stop strings; falsy when there are none. InvalidRequest for an empty string, more than
    `MAX_STRINGS` strings or more than `MAX_CHARACTERS` characters in all.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        _check(strings)
        self._next: list[dict[str, int]] = [{}]
        self._found: list[str | None] = [None]
        self.depths: list[int] = [0]  # characters of the suffix that a state stands for
        for string in strings:
            self._insert(string)
        self._fail = self._link()

    def __bool__(self) -> bool:
        return len(self._next) > 1

    def scan(self, state: int, text: str) -> Scan:
        """Read `text` from `state` up to the first place where a stop string ends (the longest, if several do)."""
        following, fail, found = self._next, self._fail, self._found
        for index, character in enumerate(text):
            while state and character not in following[state]:
                state = fail[state]
            state = following[state].get(character, 0)
            if found[state] is not None:
                return Scan(state, found[state], index + 1)
        return Scan(state)

    def _insert(self, string: str) -> None:
        state = 0
        for character in string:
            child = self._next[state].get(character)
            if child is None:
                child = self._next[state][character] = len(self._next)
                self._next.append({})
                self._found.append(None)
                self.depths.append(self.depths[state] + 1)
            state = child
        self._found[state] = string

    def _link(self) -> list[int]:
        """Failure links, breadth first; a state inherits the stop string that ends a shorter suffix of it."""
        fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            self._found[state] = self._found[state] or self._found[fail[state]]
            for character, child in self._next[state].items():
                shorter = fail[state]
                while shorter and character not in self._next[shorter]:
                    shorter = fail[shorter]
                fail[child] = self._next[shorter].get(character, 0)
                queue.append(child)
        return fail


def _check(strings: Sequence[str]) -> None:
    if len(strings) > MAX_STRINGS:
        raise InvalidRequest(f"at most {MAX_STRINGS} stop strings are allowed, not {len(strings)}", field="stop")
    if any(not string for string in strings):
        raise InvalidRequest("a stop string must not be empty", field="stop")
    if (total := sum(map(len, strings))) > MAX_CHARACTERS:
        raise InvalidRequest(
            f"stop strings may have {MAX_CHARACTERS} characters in all, not {total}; send shorter ones", field="stop"
        )
