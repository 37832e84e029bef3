"""The row store of a device: tensors that only kernels change, and a mirror of their counts that the host plans with.

The host never knows the sampled tokens when it packs a step, only how many there are: that is all a plan needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phloem.core.plan import RowStart, StepPlan
from phloem.core.request import SamplingParams
from phloem.kernels.triton.packed import PAGE_WORDS, START_WORDS, listed_words, sampling_words, start_words

IntArray = npt.NDArray[np.int32]

NO_STARTS: IntArray = np.zeros((0, START_WORDS), dtype=np.int32)
NO_PAGES: IntArray = np.zeros((0, PAGE_WORDS), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a plan changes in the row store, as kernels/triton/packed.py lays it out."""

    starts: IntArray  # [N, START_WORDS]
    pages: IntArray  # [A, PAGE_WORDS]


NOT_REPORTED = -1
"""Instead of a number of alternatives: nothing is reported of the row's tokens."""


class RowMirror:
    """The host's side of the store. `known`, `computed`, `num_pages` are [rows] int32, as the device will have them
    when everything submitted has run. [rows] also: `adjusts`, whose logits are changed before a token is drawn;
    `truncates`, whose distribution is cut (top-k, top-p, min-p); `num_top`, how many alternatives are reported. The
    last row is a spare one that no plan names: it knows and computes nothing."""

    def __init__(self, *, max_rows: int, vocab_size: int, end_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self.spare_row = max_rows
        num_rows = num_device_rows(max_rows)
        self.known: IntArray = np.zeros(num_rows, dtype=np.int32)
        self.computed: IntArray = np.zeros(num_rows, dtype=np.int32)
        self.num_pages: IntArray = np.zeros(num_rows, dtype=np.int32)
        self.adjusts: npt.NDArray[np.bool_] = np.zeros(num_rows, dtype=np.bool_)
        self.truncates: npt.NDArray[np.bool_] = np.zeros(num_rows, dtype=np.bool_)
        self.num_top: IntArray = np.full(num_rows, NOT_REPORTED, dtype=np.int32)
        self._start_words: IntArray = np.zeros((num_rows, START_WORDS), dtype=np.int32)
        self._scored: dict[int, RowStart] = {}

    # -- asking

    def scored(self, row: int) -> RowStart | None:
        """How a row started whose prompt is scored."""
        return self._scored.get(row)

    def restarts(self, rows: IntArray) -> IntArray:
        """Starts that put the device's counts of `rows` back to the mirror's: [len(rows), START_WORDS]."""
        words = self._start_words[rows]
        words[:, 1], words[:, 2] = self.known[rows], self.computed[rows]
        return words

    # -- changing, as plans are applied

    def apply(self, plan: StepPlan) -> Changes:
        """Rows end, rows start, pages are added."""
        for row in plan.ends:
            self._scored.pop(row, None)
        if not plan.starts:
            return Changes(NO_STARTS, self._add_pages(plan.new_pages))
        for start in plan.starts:
            self._start(start)
        starts = self._start_words[[start.row for start in plan.starts]]
        return Changes(starts, self._add_pages([*((each.row, each.pages) for each in plan.starts), *plan.new_pages]))

    def advance(self, rows: IntArray, num_tokens: IntArray) -> None:
        """Count the tokens that a step computes."""
        self.computed[rows] += num_tokens

    def append(self, rows: IntArray, num_tokens: int | IntArray = 1) -> None:
        """So many more tokens of each of `rows` become known."""
        self.known[rows] += num_tokens

    def _start(self, start: RowStart) -> None:
        row, params = start.row, start.sampling
        self.known[row], self.computed[row], self.num_pages[row] = len(start.token_ids), start.num_computed, 0
        self.truncates[row] = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        self.adjusts[row] = adjusts_logits(params)
        self.num_top[row] = NOT_REPORTED if params.logprobs is None else params.logprobs
        words = sampling_words(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=start.seed,
            penalties=(params.repetition_penalty, params.presence_penalty, params.frequency_penalty),
            min_tokens=params.min_tokens,
            num_biases=len(self._biases(params)),
            num_ends=len(self._ends(params)),
            has_mask=params.constraint is not None,
            reports=int(self.num_top[row]) + 1,
        )
        self._start_words[row] = start_words(
            row=row,
            num_known=len(start.token_ids),
            num_computed=start.num_computed,
            num_prompt=start.num_prompt_tokens,
            sampling=words,
        )
        if params.prompt_logprobs is not None:
            self._scored[row] = start

    def listed(self, start: RowStart) -> IntArray | None:
        """What the store lists for a row: [LISTED_WORDS], or None if there is nothing to list."""
        params = start.sampling
        if not params.logit_bias and not params.min_tokens:
            return None
        biases = self._biases(params)
        return listed_words(
            np.asarray(self._ends(params), dtype=np.int64),
            np.asarray(list(biases), dtype=np.int64),
            np.asarray(list(biases.values()), dtype=np.float32),
        )

    def _biases(self, params: SamplingParams) -> Mapping[int, float]:
        """Ids outside the vocabulary change nothing."""
        return {token_id: bias for token_id, bias in params.logit_bias.items() if 0 <= token_id < self._vocab_size}

    def _ends(self, params: SamplingParams) -> Sequence[int]:
        """The tokens that are held back until `min_tokens`."""
        if not params.min_tokens:
            return ()
        ends = {*self._end_token_ids, *params.stop_token_ids}
        return sorted(token_id for token_id in ends if 0 <= token_id < self._vocab_size)

    def _add_pages(self, added: Sequence[tuple[int, tuple[int, ...]]]) -> IntArray:
        if not added:
            return NO_PAGES
        lines: list[tuple[int, int, int]] = []
        for row, pages in added:
            first = int(self.num_pages[row])
            self.num_pages[row] = first + len(pages)
            lines += [(row, first + index, page) for index, page in enumerate(pages)]
        return np.asarray(lines, dtype=np.int32).reshape(-1, PAGE_WORDS)


def num_device_rows(max_rows: int) -> int:
    """Rows of the store: those that plans name, and the spare one."""
    return max_rows + 1


def adjusts_logits(params: SamplingParams) -> bool:
    """Whether anything changes the logits before a token is drawn."""
    penalises = params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    return penalises or bool(params.logit_bias) or params.min_tokens > 0 or params.constraint is not None
