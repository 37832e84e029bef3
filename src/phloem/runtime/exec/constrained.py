"""The host's part of the rows with a constraint on a device: it knows their texts, the device draws their tokens.

    start, took ──> the mask of the next token, computed on a thread while the device works
    masks       ──> what the step that draws this token uploads first
    took        ──> the drawn token moves the matcher; tokens that must follow are `forced`: the next step uploads them

Nothing of such a row is planned ahead of its last result (runtime/sched), so whoever plans a token of it has its mask
under way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from phloem.core.plan import RowStart
from phloem.runtime.exec.sampling.state import Grammars, SamplingState
from phloem.runtime.grammar.masks import MaskPool
from phloem.runtime.grammar.matcher import BitRow, Matcher


class ConstrainedRows:
    """One sampling state, and the mask of the next token, for every row with a constraint."""

    def __init__(self, *, vocab_size: int, grammars: Grammars | None) -> None:
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._pool = MaskPool()
        self._states: dict[int, SamplingState] = {}
        self._masks: dict[int, BitRow] = {}  # those that were waited for; a step that is tried again asks again
        self._forced: dict[int, tuple[int, ...]] = {}

    def __contains__(self, row: int) -> bool:
        return row in self._states

    def start(self, start: RowStart) -> None:
        """A row starts; its constraint is already compiled."""
        state = SamplingState.start(start, vocab_size=self._vocab_size, grammars=self._grammars)
        self._states[start.row] = state
        self._begin_mask(start.row)

    def end(self, row: int) -> None:
        """A row ends, if it was one of these."""
        if self._states.pop(row, None) is not None:
            self._masks.pop(row, None)
            self._forced.pop(row, None)

    def masks(self, rows: Iterable[int]) -> Mapping[int, BitRow]:
        """The masks of those of `rows` that have a constraint; waits until they are computed."""
        wanted = [row for row in rows if row in self._states]
        missing = {row: self._matcher(row) for row in wanted if row not in self._masks}
        self._masks |= self._pool.take(missing, patience_s=None)
        return {row: self._whole(self._masks[row]) for row in wanted}

    def took(self, row: int, token_id: int) -> tuple[int, ...]:
        """The device drew a token; returns it and those that must follow."""
        state = self._states[row]
        state.append(token_id)
        forced = tuple(state.force())
        if forced:
            self._forced[row] = forced
        self._masks.pop(row, None)
        self._begin_mask(row)
        return token_id, *forced

    def take_forced(self) -> Mapping[int, tuple[int, ...]]:
        """Tokens by row that the device does not know yet; the caller sees to it."""
        forced, self._forced = self._forced, {}
        return forced

    def fault(self, row: int) -> str | None:
        """Why no token can follow in a row, where its constraint is to blame."""
        fault = self._matcher(row).fault if row in self._states else None
        return None if fault is None else f"the constraint cannot be followed any further: {fault}"

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _begin_mask(self, row: int) -> None:
        self._pool.start([self._matcher(row)])

    def _whole(self, mask: BitRow) -> BitRow:
        """A mask of the vocabulary; that of a grammar that could not begin has no width, and forbids everything."""
        return mask if mask.size else np.zeros(-(-self._vocab_size // 32), dtype=np.int32)

    def _matcher(self, row: int) -> Matcher:
        matcher = self._states[row].matcher
        assert matcher is not None, f"row {row} has no constraint"
        return matcher
