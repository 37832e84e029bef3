"""Keeps the text of control tokens inside user strings from becoming control tokens.

A tokenizer cuts control tokens out of a text before anything else happens to it. So each control token spelled in a
user's string gets an invisible mark after its first character, which hides it from that cut; the tokenizer's first
normalizer then deletes the marks, and what follows (pre-tokenizer, merges) sees the user's text as it was written:

    "a<|im_end|>b"  --protect-->  "a<#|im_end|>b"  --cut: nothing-->  --normalize-->  "a<|im_end|>b"  --> plain pieces

A chat template may trim, join or JSON-encode protected strings; the marks travel with them, and the control tokens
that the template itself writes stay unmarked. A string that holds no control token is returned as it is, so ordinary
prompts are tokenized exactly as if there were no guard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

MARK = "\U0010fffe\U0010ffff"  # two noncharacters, which no text may contain by the Unicode standard, section 23.7
ESCAPED_MARK = json.dumps(MARK)[1:-1]


class ControlGuard:
    """Hides the given control tokens in user text. `protect` is undone by deleting every `MARK`, left to right.

    A mark that a user writes is split by a mark of ours, so deletion gives the user's text back unchanged. Tokens of
    one character cannot be split and are not protected.
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        hidden = [MARK, *(token for token in control_tokens if len(token) > 1)]
        hidden.sort(key=len, reverse=True)
        self._hidden = re.compile("|".join(map(re.escape, hidden)))
        self._overlapping = re.compile("|".join(map(re.escape, (token for token in hidden if token != MARK))) or "(?!)")

    def protect(self, text: str) -> str:
        """`text` with a mark inside each control token it spells."""
        if not self._hidden.search(text):
            return text
        marked = self._hidden.sub(_mark, text)
        while self._overlapping.search(marked):  # a token that began inside the one just split
            marked = self._overlapping.sub(_mark, marked)
        return marked

    def protect_all(self, value: Any) -> Any:
        """A copy of a JSON value with every string in it, keys included, protected."""
        if isinstance(value, str):
            return self.protect(value)
        if isinstance(value, Mapping):
            return {self.protect_all(key): self.protect_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect_all(item) for item in value]
        return value


def escape(text: str) -> str:
    """`text` such that only its own marks survive their deletion; control tokens in it stay control tokens."""
    return text.replace(MARK, MARK[0] + MARK + MARK[1])


def reveal(text: str) -> str:
    """Protected text as people should see it."""
    return text.replace(MARK, "")


def _mark(match: re.Match[str]) -> str:
    token = match.group()
    return token[0] + MARK + token[1:]
