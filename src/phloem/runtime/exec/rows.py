"""The row store: what the worker knows of each device row. It changes only by applying plans and appending samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phloem.core.plan import RowStart, StepPlan
from phloem.runtime.exec.sampling.state import Grammars, SamplingState

IntArray = npt.NDArray[np.int32]


class RowStore:
    """Tokens, block tables and sampling state of every row, on the host.

    `tokens[row, :known[row]]` are the known tokens, of which the first `computed[row]` have their keys and values in
    the pages `block_table[row]`.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_model_len: int,
        page_size: int,
        vocab_size: int,
        end_token_ids: tuple[int, ...],
        grammars: Grammars | None = None,
    ) -> None:
        max_pages = -(-max_model_len // page_size) + 1
        self.page_size = page_size
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self._grammars = grammars
        self.tokens: IntArray = np.zeros((max_rows, max_model_len + 1), dtype=np.int32)  # [rows, tokens]
        self.block_table: IntArray = np.zeros((max_rows, max_pages), dtype=np.int32)  # [rows, pages]
        self.known: IntArray = np.zeros(max_rows, dtype=np.int32)  # [rows]
        self.computed: IntArray = np.zeros(max_rows, dtype=np.int32)  # [rows]
        self.num_pages: IntArray = np.zeros(max_rows, dtype=np.int32)  # [rows]
        self.num_prompt: IntArray = np.zeros(max_rows, dtype=np.int32)  # [rows]
        self._sampling: list[SamplingState | None] = [None] * max_rows

    def apply(self, plan: StepPlan) -> None:
        """Rows end, rows start, pages are added."""
        for row in plan.ends:
            self._sampling[row] = None
        for start in plan.starts:
            self._start(start)
        for row, pages in plan.new_pages:
            self._add_pages(row, pages)

    def advance(self, rows: IntArray, num_tokens: IntArray) -> None:
        """Count the tokens that a step has computed."""
        self.computed[rows] += num_tokens

    def repeat(self, rows: Sequence[int]) -> None:
        """The last computed token of these rows counts as not computed: it is to be computed again."""
        self.computed[list(rows)] -= 1

    def append(self, row: int, token: int) -> tuple[int, ...]:
        """A sampled token becomes known, and with it those that its constraint leaves no choice about. Returns them
        all."""
        state = self.sampling(row)
        state.append(token)
        tokens = (token, *state.force())[: self.tokens.shape[1] - int(self.known[row])]
        known = int(self.known[row]) + len(tokens)
        self.tokens[row, known - len(tokens) : known] = tokens
        self.known[row] = known
        return tokens

    def sampling(self, row: int) -> SamplingState:
        """The sampling state of a row that has started and not ended."""
        state = self._sampling[row]
        assert state is not None, f"row {row} is not in use"
        return state

    def _start(self, start: RowStart) -> None:
        row = start.row
        self.tokens[row, : len(start.token_ids)] = start.token_ids
        self.known[row] = len(start.token_ids)
        self.computed[row] = start.num_computed
        self.num_prompt[row] = start.num_prompt_tokens
        self.num_pages[row] = 0
        self._add_pages(row, start.pages)
        self._sampling[row] = SamplingState.start(
            start, vocab_size=self._vocab_size, end_token_ids=self._end_token_ids, grammars=self._grammars
        )

    def _add_pages(self, row: int, pages: Sequence[int]) -> None:
        first = self.num_pages[row]
        self.block_table[row, first : first + len(pages)] = pages
        self.num_pages[row] += len(pages)
