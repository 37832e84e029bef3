"""What the row store's kernels compute, in plain torch on the host: their oracle, and what runs without them."""

from __future__ import annotations

import numpy as np
import torch

from phloem.core.request import SamplingParams
from phloem.kernels.triton import packed
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors
from phloem.runtime.exec.queue import IntArray
from phloem.runtime.exec.sampling.sample import NO_TOKEN, sample_row
from phloem.runtime.exec.sampling.state import SamplingState


class ReferenceRowKernels:
    """`RowKernels` for tensors on the host."""

    def __init__(self, *, page_size: int) -> None:
        self._page_size = page_size

    def apply_plan(self, plan: torch.Tensor, store: RowTensors) -> None:
        """Rows start, pages are added."""
        step = unpack(plan.numpy())
        for line in step.starts:
            row = int(line[packed.START_ROW])
            store.known[row] = int(line[packed.START_KNOWN])
            store.computed[row] = int(line[packed.START_COMPUTED])
            store.num_prompt[row] = int(line[packed.START_PROMPT])
            store.sampling[row] = torch.from_numpy(line[packed.START_SAMPLING :].copy())
        for row, index, page in step.pages.tolist():
            store.block_table[row, index] = page

    def fill_inputs(self, plan: torch.Tensor, store: RowTensors, step: StepTensors, size: BucketSize) -> None:
        """The inputs of the step, padded to `size`; `computed` advances."""
        packed_step = unpack(plan.numpy())
        start, rows = packed_step.query_start, packed_step.batch_rows
        num_rows, num_tokens = len(rows), int(start[-1])
        step.token_ids[: size.num_tokens] = 0
        step.positions[: size.num_tokens] = 0
        step.slots[: size.num_tokens] = -1
        step.context_len[: size.num_rows] = 0
        step.query_start[: size.num_rows + 1] = num_tokens
        step.query_start[: num_rows + 1] = torch.from_numpy(start.copy())
        for index, row in enumerate(rows.tolist()):
            first, stop = int(start[index]), int(start[index + 1])
            computed = int(store.computed[row])
            position = torch.arange(computed, computed + stop - first, dtype=torch.int32)
            page = store.block_table[row][(position // self._page_size).long()]
            step.token_ids[first:stop] = store.tokens[row, position.long()]
            step.positions[first:stop] = position
            step.slots[first:stop] = page * self._page_size + position % self._page_size
            step.context_len[index] = computed + stop - first
            step.block_table[index] = store.block_table[row]
            store.computed[row] += stop - first
        _put(step.logit_rows, packed_step.line_tokens, size.num_logits, padding=0)
        _put(step.line_rows, packed_step.line_rows, size.num_logits, padding=-1)
        _put(step.shared_start, packed_step.shared_start, size.num_shared + 1, padding=len(packed_step.shared_rows))
        _put(step.shared_rows, packed_step.shared_rows, len(packed_step.shared_rows), padding=0)
        _put(step.shared_pages, packed_step.shared_pages, size.num_shared, padding=0)

    def sample(
        self, logits: torch.Tensor, line_rows: torch.Tensor, store: RowTensors, *, truncates: bool
    ) -> torch.Tensor:
        """A token for every line that has a row, appended to it."""
        drawn = [
            NO_TOKEN if row < 0 else _draw(logits[line], row, store) for line, row in enumerate(line_rows.tolist())
        ]
        token_ids = torch.tensor(drawn, dtype=torch.int32)
        is_good = token_ids >= 0
        self.append_tokens(line_rows[is_good], token_ids[is_good], store)
        return token_ids

    def append_tokens(self, rows: torch.Tensor, token_ids: torch.Tensor, store: RowTensors) -> None:
        """Sampled tokens become known."""
        for row, token in zip(rows.tolist(), token_ids.tolist(), strict=True):
            store.tokens[row, int(store.known[row])] = token
            store.known[row] += 1


def unpack(words: IntArray) -> packed.PackedStep:
    """The sections of a packed plan."""
    header = words[: packed.HEADER_WORDS]
    num_rows, num_lines, num_shared = header[packed.NUM_ROWS], header[packed.NUM_LOGITS], header[packed.NUM_SHARED]
    sizes = (num_rows, num_rows + 1, num_lines, num_lines, num_shared + 1, header[packed.NUM_SHARED_ROWS], num_shared)
    lengths = [*sizes, header[packed.NUM_STARTS] * packed.START_WORDS, header[packed.NUM_PAGES] * packed.PAGE_WORDS]
    ends = np.cumsum([packed.HEADER_WORDS, *lengths])
    sections = [words[begin:end] for begin, end in zip(ends[:-1], ends[1:])]
    rows, start, tokens, lines, shared_start, shared_rows, shared_pages, starts, pages = sections
    return packed.PackedStep(
        batch_rows=rows,
        query_start=start,
        line_tokens=tokens,
        line_rows=lines,
        shared_start=shared_start,
        shared_rows=shared_rows,
        shared_pages=shared_pages,
        starts=starts.reshape(-1, packed.START_WORDS),
        pages=pages.reshape(-1, packed.PAGE_WORDS),
    )


def _draw(logits: torch.Tensor, row: int, store: RowTensors) -> int:
    words: IntArray = store.sampling[row].numpy()
    floats = words[: packed.TOP_K].view(np.float32).tolist()
    low, high = words[packed.SEED_LOW : packed.SEED_HIGH + 1].view(np.uint32).tolist()
    params = SamplingParams(temperature=floats[0], top_p=floats[1], min_p=floats[2], top_k=int(words[packed.TOP_K]))
    state = SamplingState(params=params, seed=low | high << 32, prompt=(), generated=(), vocab_size=len(logits))
    state.num_generated = int(store.known[row] - store.num_prompt[row])
    token = sample_row(logits.numpy(), state)
    return NO_TOKEN if isinstance(token, str) else token


def _put(out: torch.Tensor, values: IntArray, length: int, *, padding: int) -> None:
    out[: max(length, len(values))] = padding
    out[: len(values)] = torch.from_numpy(values.copy())
