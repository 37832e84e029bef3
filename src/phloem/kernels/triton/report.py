# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Log-probabilities of drawn tokens and of the best alternatives, of the raw logits, without a sort of the vocabulary.

    chunks    one program a chunk of a line: its sum of exponentials, how many tokens come before the drawn one, and its
              MAX_TOP best, as numbers whose order is that of the tokens (larger logit first, equal logits by lower id)
    line      one program a line: the same of all its chunks together

What is reported, and the order, are those of runtime/exec/sampling/logprobs.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton import packed
from phloem.kernels.triton.row_tensors import RowTensors
from phloem.kernels.triton.sample import chunk_numbers
from phloem.kernels.triton.sample_parts import SAMPLING_WORDS

CHUNK = 2048

REPORTS: tl.constexpr = tl.constexpr(packed.REPORTS)
REPORT_WORDS: tl.constexpr = tl.constexpr(packed.REPORT_WORDS)
REPORT_LOGPROB: tl.constexpr = tl.constexpr(packed.REPORT_LOGPROB)
REPORT_RANK: tl.constexpr = tl.constexpr(packed.REPORT_RANK)
REPORT_IDS: tl.constexpr = tl.constexpr(packed.REPORT_IDS)
REPORT_VALUES: tl.constexpr = tl.constexpr(packed.REPORT_VALUES)
MAX_TOP: tl.constexpr = tl.constexpr(packed.MAX_TOP)


def report(logits: Tensor, token_ids: Tensor, line_rows: Tensor, store: RowTensors) -> Tensor:
    """[L, REPORT_WORDS] int32, see packed.py, of raw logits [L, V] float32 and the drawn token_ids [L]. Lines that drew
    nothing, or whose row wants nothing reported, hold anything."""
    num_lines, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    device = logits.device
    out = torch.empty((num_lines, packed.REPORT_WORDS), dtype=torch.int32, device=device)
    if not num_lines:
        return out
    stats = (chunk_numbers(logits, num_chunks), chunk_numbers(logits, num_chunks))  # maxima, sums
    counts = torch.empty((num_lines, num_chunks), dtype=torch.int32, device=device)
    best = torch.empty((num_lines, num_chunks, packed.MAX_TOP), dtype=torch.int64, device=device)
    lines = (logits, logits.stride(0), token_ids, line_rows, store.sampling)
    parts = (stats[0], stats[1], counts, best)
    _rank_chunks[(num_lines, num_chunks)](*lines, *parts, vocab_size, CHUNK=CHUNK, num_warps=8)
    chunks = triton.next_power_of_2(num_chunks)
    _report_line[(num_lines,)](*lines, *parts, out, num_chunks, CHUNKS=chunks, num_warps=8)
    return out


@triton.jit
def _rank_chunks(
    logits, stride, token_ids, line_rows, sampling, maxima, sums, counts, best, vocab_size, CHUNK: tl.constexpr
):
    line, chunk = tl.program_id(0), tl.program_id(1)
    row, drawn = tl.load(line_rows + line), tl.load(token_ids + line)
    if (row >= 0) & (drawn >= 0):
        wanted = tl.load(sampling + row * SAMPLING_WORDS + REPORTS)
        if wanted > 0:
            values = logits + line.to(tl.int64) * stride
            token = chunk * CHUNK + tl.arange(0, CHUNK)
            value = tl.load(values + token, mask=token < vocab_size, other=float("-inf"))
            chosen = tl.load(values + drawn)
            largest = tl.max(value)
            base = tl.where(largest == float("-inf"), 0.0, largest)
            place = line * tl.num_programs(1) + chunk
            tl.store(maxima + place, largest)
            tl.store(sums + place, tl.sum(tl.exp(value - base)))
            comes_before = (value > chosen) | ((value == chosen) & (token < drawn))
            tl.store(counts + place, tl.sum(comes_before.to(tl.int32)))
            if wanted > 1:
                tl.store(best + place * MAX_TOP + tl.arange(0, MAX_TOP), tl.topk(_keys(value, token), MAX_TOP))


@triton.jit
def _report_line(
    logits, stride, token_ids, line_rows, sampling, maxima, sums, counts, best, out, num_chunks, CHUNKS: tl.constexpr
):
    line = tl.program_id(0)
    row, drawn = tl.load(line_rows + line), tl.load(token_ids + line)
    if (row >= 0) & (drawn >= 0):
        wanted = tl.load(sampling + row * SAMPLING_WORDS + REPORTS)
        if wanted > 0:
            chunk = tl.arange(0, CHUNKS)
            exists = chunk < num_chunks
            of_chunk = tl.load(maxima + line * num_chunks + chunk, mask=exists, other=float("-inf"))
            weight = tl.load(sums + line * num_chunks + chunk, mask=exists, other=0.0)
            largest = tl.max(of_chunk)
            total = tl.sum((weight * tl.exp(of_chunk - largest)).to(tl.float64))
            normaliser = largest.to(tl.float64) + tl.log(total)
            num_before = tl.sum(tl.load(counts + line * num_chunks + chunk, mask=exists, other=0))
            mine = out + line * REPORT_WORDS
            chosen = tl.load(logits + line.to(tl.int64) * stride + drawn)
            _store_float(mine + REPORT_LOGPROB, (chosen.to(tl.float64) - normaliser).to(tl.float32))
            tl.store(mine + REPORT_RANK, num_before + 1)
            if wanted > 1:
                index = tl.arange(0, CHUNKS * MAX_TOP)
                keys = tl.load(
                    best + line * num_chunks * MAX_TOP + index,
                    mask=index < num_chunks * MAX_TOP,
                    other=-0x7FFFFFFFFFFFFFFF,
                )
                keys = tl.topk(keys, MAX_TOP)
                place = tl.arange(0, MAX_TOP)
                tl.store(mine + REPORT_IDS + place, (keys & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF)
                value = _ordered((keys >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
                _store_float(mine + REPORT_VALUES + place, (value.to(tl.float64) - normaliser).to(tl.float32))


@triton.jit
def _keys(value, token):
    """int64 numbers in the order of (logit, then lower id); no logit is NaN."""
    value = tl.where(value == 0.0, 0.0, value)  # minus zero is zero
    return (_ordered(value.to(tl.int32, bitcast=True)).to(tl.int64) << 32) | (token ^ 0x7FFFFFFF).to(tl.int64)


@triton.jit
def _ordered(bits):
    """The bits of a float32 as an integer in the floats' order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _store_float(where, value):
    tl.store(where, value.to(tl.int32, bitcast=True))
