"""One text's way through its grammar: which tokens may follow, and which must."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from llguidance import LLMatcher

BitRow = npt.NDArray[np.int32]
"""[ceil(mask_size / 32)]: bit i says whether token i may follow."""


class Matcher:
    """Advances with each token of one text. Nothing raises: what goes wrong is remembered as `fault`, and the text
    ends with it. Used by one thread at a time."""

    __slots__ = ("_end_ids", "_has_ended", "_inner", "_mask_size", "fault")

    def __init__(self, inner: LLMatcher | None, *, end_ids: tuple[int, ...], mask_size: int) -> None:
        self._inner = inner
        self._end_ids = end_ids
        self._mask_size = mask_size
        self._has_ended = False
        self.fault: str | None = None if inner is not None else "no grammar"

    @classmethod
    def failed(cls, reason: str) -> Matcher:
        """A matcher of a grammar that could not be compiled."""
        matcher = cls(None, end_ids=(), mask_size=0)
        matcher.fault = reason
        return matcher

    def accept(self, token: int) -> None:
        """The text has one more token."""
        self._has_ended |= token in self._end_ids
        if self.fault is None and not self._grammar.consume_token(token):
            self.fault = self._grammar.get_error() or f"token {token} is not in the grammar"

    def accept_all(self, tokens: Iterable[int]) -> None:
        """The text has more tokens: those of a row that starts again."""
        for token in tokens:
            self.accept(token)

    def mask(self) -> BitRow:
        """The tokens that may follow; none after a fault."""
        bits: BitRow = np.zeros(-(-self._mask_size // 32), dtype=np.int32)
        if self.fault is None:
            self._grammar.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)  # releases the GIL
            self.fault = self._grammar.get_error() or None
            if self.fault is not None:
                bits[:] = 0
        return bits

    def force(self, max_tokens: int) -> list[int]:
        """Accept the tokens that must follow, at most so many, and return them.

        A token must follow where its mask has no other: this is what sampling under the mask would give, one by one.
        """
        forced: list[int] = []
        while self.fault is None and not self._has_ended and len(forced) < max_tokens:
            following = self._following()
            if following is None:
                break
            self.accept(following)
            forced.append(following)
        return forced

    @property
    def is_finished(self) -> bool:
        """Whether only an end token may follow, or one has."""
        return self.fault is not None or bool(self._grammar.is_stopped())

    @property
    def _grammar(self) -> LLMatcher:
        assert self._inner is not None
        return self._inner

    def _following(self) -> int | None:
        tokens: list[int] = self._grammar.compute_ff_tokens()
        if tokens:
            return tokens[0]
        return self._end_ids[0] if len(self._end_ids) == 1 and self.is_finished else None
