"""A fixed text, read one character at a time."""

from __future__ import annotations

JSON_SPACE = " \t\r\n"


class Literal:
    """Expects `text`. Where it holds white space, and before it, any amount of white space is read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._words = text.split()
        self._word = 0
        self._position = 0

    @property
    def is_done(self) -> bool:
        """Whether the whole text was read."""
        return self._word == len(self._words)

    def push(self, character: str) -> bool:
        """Whether the text may go on like this. Not to be called once it is done."""
        if self._position == 0 and character in JSON_SPACE:
            return True
        word = self._words[self._word]
        if word[self._position] != character:
            return False
        self._position += 1
        if self._position == len(word):
            self._word, self._position = self._word + 1, 0
        return True
