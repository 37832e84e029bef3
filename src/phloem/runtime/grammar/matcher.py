"""One text's way through its grammar: which tokens may follow, and which must."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from phloem.core.errors import InvalidRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher

BitRow = npt.NDArray[np.int32]
"""[ceil(mask_size / 32)]: bit i says whether token i may follow."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A grammar at its first token, for one text alone, and the vocabulary it speaks of."""

    grammar: LLMatcher
    end_ids: tuple[int, ...]
    mask_size: int  # bits


class Matcher:
    """Advances with each token of one text. Nothing raises: what goes wrong is remembered as `fault`, and the text
    ends with it. Used by one thread at a time.

    `begin` is called by whatever method comes first, for a text that has the tokens `generated` already: it may have to
    compile, so it is the thread of the first mask that waits for it and not the one that made the matcher.
    """

    __slots__ = ("__weakref__", "_begin", "_beginning", "_generated", "_has_ended", "fault")

    def __init__(self, begin: Callable[[], Beginning], *, generated: Sequence[int] = ()) -> None:
        self._begin = begin
        self._beginning: Beginning | None = None
        self._generated = generated
        self._has_ended = False
        self.fault: str | None = None

    def accept(self, token: int) -> None:
        """The text has one more token."""
        if (begun := self._begun()) is None:
            return
        self._has_ended |= token in begun.end_ids
        if self.fault is None and not begun.grammar.consume_token(token):
            self.fault = begun.grammar.get_error() or f"token {token} is not in the grammar"

    def accept_all(self, tokens: Iterable[int]) -> None:
        """The text has more tokens: those of a row that starts again."""
        for token in tokens:
            self.accept(token)

    def mask(self) -> BitRow:
        """The tokens that may follow; none after a fault."""
        begun = self._begun()
        bits: BitRow = np.zeros(0 if begun is None else -(-begun.mask_size // 32), dtype=np.int32)
        if begun is not None and self.fault is None:
            begun.grammar.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)  # releases the GIL
            self.fault = begun.grammar.get_error() or None
            if self.fault is not None:
                bits[:] = 0
        return bits

    def force(self, max_tokens: int) -> list[int]:
        """Accept the tokens that must follow, at most so many, and return them.

        A token must follow where its mask has no other: this is what sampling under the mask would give, one by one.
        """
        forced: list[int] = []
        begun = self._begun()
        while begun is not None and self.fault is None and not self._has_ended and len(forced) < max_tokens:
            following = self._following(begun)
            if following is None:
                break
            self.accept(following)
            forced.append(following)
        return forced

    @property
    def is_finished(self) -> bool:
        """Whether only an end token may follow, or one has."""
        begun = self._begun()
        return begun is None or self.fault is not None or bool(begun.grammar.is_stopped())

    def _begun(self) -> Beginning | None:
        """None when there is no grammar: `fault` says why."""
        if self._beginning is None and self.fault is None:
            try:
                self._beginning = self._begin()
            except InvalidRequest as error:
                self.fault = error.message
            else:
                self.accept_all(self._generated)
        return self._beginning

    def _following(self, begun: Beginning) -> int | None:
        tokens: list[int] = begun.grammar.compute_ff_tokens()
        if tokens:
            return tokens[0]
        return begun.end_ids[0] if len(begun.end_ids) == 1 and self.is_finished else None
