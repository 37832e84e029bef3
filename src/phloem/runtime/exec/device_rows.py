"""The row store of a device: tensors that only kernels change, and a mirror of their counts that the host plans with.

The host never knows the sampled tokens when it packs a step, only how many there are: that is all a plan needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phloem.core.plan import RowStart, StepPlan
from phloem.core.request import SamplingParams
from phloem.kernels.triton.packed import PAGE_WORDS, START_WORDS, sampling_words, start_words
from phloem.runtime.exec.sampling.state import Grammars, SamplingState

IntArray = npt.NDArray[np.int32]

NO_STARTS: IntArray = np.zeros((0, START_WORDS), dtype=np.int32)
NO_PAGES: IntArray = np.zeros((0, PAGE_WORDS), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a plan changes in the row store, as kernels/triton/packed.py lays it out."""

    starts: IntArray  # [N, START_WORDS]
    pages: IntArray  # [A, PAGE_WORDS]


@dataclass(slots=True)
class HostRow:
    """A row whose tokens are chosen on the host: its prompt, for scoring, and its sampler's memory."""

    prompt: tuple[int, ...]
    state: SamplingState


class RowMirror:
    """The host's side of the store. `known`, `computed`, `num_pages` are [rows] int32, as the device will have them
    when everything submitted has run; `truncates` [rows] says whose distribution is cut (top-k, top-p, min-p). The last
    row is a spare one that no plan names: it knows and computes nothing."""

    def __init__(
        self, *, max_rows: int, vocab_size: int, end_token_ids: tuple[int, ...], grammars: Grammars | None = None
    ) -> None:
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self._grammars = grammars
        self.spare_row = max_rows
        num_rows = num_device_rows(max_rows)
        self.known: IntArray = np.zeros(num_rows, dtype=np.int32)
        self.computed: IntArray = np.zeros(num_rows, dtype=np.int32)
        self.num_pages: IntArray = np.zeros(num_rows, dtype=np.int32)
        self.truncates: npt.NDArray[np.bool_] = np.zeros(num_rows, dtype=np.bool_)
        self._start_words: IntArray = np.zeros((num_rows, START_WORDS), dtype=np.int32)
        self._on_host: dict[int, HostRow] = {}

    # -- asking

    @property
    def has_host_rows(self) -> bool:
        """Whether any row's tokens are chosen on the host."""
        return bool(self._on_host)

    def host_row(self, row: int) -> HostRow | None:
        """The host's memory of a row whose tokens it chooses."""
        return self._on_host.get(row)

    def restarts(self, rows: IntArray) -> IntArray:
        """Starts that put the device's counts of `rows` back to the mirror's: [len(rows), START_WORDS]."""
        words = self._start_words[rows]
        words[:, 1], words[:, 2] = self.known[rows], self.computed[rows]
        return words

    # -- changing, as plans are applied

    def apply(self, plan: StepPlan) -> Changes:
        """Rows end, rows start, pages are added."""
        for row in plan.ends:
            self._on_host.pop(row, None)
        if not plan.starts:
            return Changes(NO_STARTS, self._add_pages(plan.new_pages))
        for start in plan.starts:
            self._start(start)
        starts = self._start_words[[start.row for start in plan.starts]]
        return Changes(starts, self._add_pages([*((each.row, each.pages) for each in plan.starts), *plan.new_pages]))

    def advance(self, rows: IntArray, num_tokens: IntArray) -> None:
        """Count the tokens that a step computes."""
        self.computed[rows] += num_tokens

    def append(self, rows: IntArray) -> None:
        """One more token of each of `rows` becomes known."""
        self.known[rows] += 1

    def _start(self, start: RowStart) -> None:
        row, params = start.row, start.sampling
        self.known[row], self.computed[row], self.num_pages[row] = len(start.token_ids), start.num_computed, 0
        self.truncates[row] = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        words = sampling_words(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=start.seed,
        )
        self._start_words[row] = start_words(
            row=row,
            num_known=len(start.token_ids),
            num_computed=start.num_computed,
            num_prompt=start.num_prompt_tokens,
            sampling=words,
        )
        if needs_host(params):
            state = SamplingState.start(
                start, vocab_size=self._vocab_size, end_token_ids=self._end_token_ids, grammars=self._grammars
            )
            self._on_host[row] = HostRow(start.token_ids[: start.num_prompt_tokens], state)

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


def needs_host(params: SamplingParams) -> bool:
    """Whether a row's tokens are chosen on the host: it wants numbers reported, or its logits changed by what it said.

    Such a row waits for the device in every step; all others never do.
    """
    reports = params.logprobs is not None or params.prompt_logprobs is not None
    penalises = params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    changes = bool(params.logit_bias) or params.min_tokens > 0 or params.constraint is not None
    return reports or penalises or changes
