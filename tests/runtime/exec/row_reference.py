"""What the row store's kernels compute, in plain torch on the host: their oracle, and what runs without them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from phloem.core.request import SamplingParams
from phloem.kernels.triton import packed
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors
from phloem.runtime.exec.queue import IntArray
from phloem.runtime.exec.sampling.adjust import adjusted
from phloem.runtime.exec.sampling.logprobs import token_logprob
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
        for row, token in zip(line_rows[is_good].tolist(), token_ids[is_good].tolist(), strict=True):
            store.tokens[row, int(store.known[row])] = token
            store.known[row] += 1
        return token_ids

    def adjust(self, logits: torch.Tensor, line_rows: torch.Tensor, store: RowTensors) -> None:
        """Mask, bias, hold back and penalise, in place."""
        for line, row in enumerate(line_rows.tolist()):
            if row < 0:
                continue
            words = store.sampling[row].numpy()
            if words[packed.HAS_MASK]:
                bits = np.unpackbits(store.masks[row].numpy().view(np.uint8), bitorder="little")[: logits.shape[1]]
                logits[line, torch.from_numpy(bits == 0)] = float("-inf")
            logits[line] = torch.from_numpy(adjusted(logits[line].numpy(), _state(row, store, logits.shape[1])))

    def report(
        self, logits: torch.Tensor, token_ids: torch.Tensor, line_rows: torch.Tensor, store: RowTensors
    ) -> torch.Tensor:
        """Log-probabilities in the words of packed.py."""
        out = torch.zeros(len(token_ids), packed.REPORT_WORDS, dtype=torch.int32)
        for line, (row, token) in enumerate(zip(line_rows.tolist(), token_ids.tolist(), strict=True)):
            if row < 0 or token < 0 or not (wanted := int(store.sampling[row, packed.REPORTS])):
                continue
            entry = token_logprob(logits[line].numpy(), token, wanted - 1)
            words = out[line].numpy()
            words[packed.REPORT_RANK] = entry.rank
            words.view(np.float32)[packed.REPORT_LOGPROB] = entry.logprob
            for place, (token_id, value) in enumerate(entry.top):
                words[packed.REPORT_IDS + place] = token_id
                words.view(np.float32)[packed.REPORT_VALUES + place] = value
        return out


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
    """What a plain row of these parameters draws; `adjust` has changed the logits already."""
    state = _state(row, store, len(logits))
    state.bias_ids, state.bias_values, state.end_ids = state.bias_ids[:0], state.bias_values[:0], state.end_ids[:0]
    state.counts = None
    token = sample_row(logits.numpy(), state)
    return NO_TOKEN if isinstance(token, str) else token


def _state(row: int, store: RowTensors, vocab_size: int) -> SamplingState:
    """The host's sampler of a row, from what the store knows of it."""
    words: IntArray = store.sampling[row].numpy()
    floats = words.view(np.float32).tolist()
    low, high = words[packed.SEED_LOW : packed.SEED_HIGH + 1].view(np.uint32).tolist()
    bias_ids, biases, end_ids = _listed(row, store)
    num_prompt, tokens = int(store.num_prompt[row]), store.tokens[row, : int(store.known[row])].tolist()
    params = SamplingParams(
        temperature=floats[packed.TEMPERATURE],
        top_p=floats[packed.TOP_P],
        min_p=floats[packed.MIN_P],
        top_k=int(words[packed.TOP_K]),
        repetition_penalty=floats[packed.REPETITION],
        presence_penalty=floats[packed.PRESENCE],
        frequency_penalty=floats[packed.FREQUENCY],
        min_tokens=int(words[packed.MIN_TOKENS]),
        logit_bias=dict(zip(bias_ids.tolist(), biases.tolist())),
    )
    return SamplingState(
        params=params,
        seed=low | high << 32,
        prompt=tokens[:num_prompt],
        generated=tokens[num_prompt:],
        vocab_size=vocab_size,
        end_token_ids=end_ids.tolist(),
    )


def _listed(row: int, store: RowTensors) -> tuple[IntArray, npt.NDArray[np.float32], IntArray]:
    """Biased tokens, biases, end tokens."""
    words: IntArray = store.sampling[row].numpy()
    listed: IntArray = store.listed[row].numpy()
    num_biases, num_ends = int(words[packed.NUM_BIASES]), int(words[packed.NUM_ENDS])
    bias_ids = listed[packed.LISTED_BIASES :][:num_biases]
    biases = listed[packed.LISTED_VALUES :][:num_biases].view(np.float32)
    return bias_ids, biases, listed[packed.LISTED_ENDS :][:num_ends]


def _put(out: torch.Tensor, values: IntArray, length: int, *, padding: int) -> None:
    out[: max(length, len(values))] = padding
    out[: len(values)] = torch.from_numpy(values.copy())
