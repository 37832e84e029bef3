# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Sampling from a part of the vocabulary: min_p, top_k and top_p, without a sort.

    bound     (made by sample.py's pass 2) a logit that the tokens which the rules leave reach
    gather    the tokens that reach it, in id order, if they are at most FEW: one program a chunk of a line, first to
              count them, then to write them where the counts before say
    rank      one program a line: for each gathered token, how many come before it in the order (larger logit first,
              equal logits by lower id) and what they weigh; so top_k and top_p are one comparison each
    draw      in id order among those left

Lines that leave too many tokens, which a model that is sure of anything does not, go to search.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.sample_parts import (
    MIN_P,
    SAMPLING_WORDS,
    TOP_K,
    TOP_P,
    exponent_scale,
    finish,
    float_word,
    is_samplable,
    is_truncated,
    limits_count,
    position_of_mass,
    uniform,
)
from phloem.kernels.triton.search import PENDING, pick_among_many

FEW = 1024  # tokens that are ranked among each other; top_p's are first looked for among as many likely ones
COLUMNS = 8  # of them, how many a token is compared with at a time
BLOCK = 4096  # logits that search.py reads at once
GATHER_WARPS, RANK_WARPS, SEARCH_WARPS = 4, 8, 16


def sample_truncated(
    logits: Tensor,
    stats: tuple[Tensor, Tensor],
    bounds: Tensor,
    rows: tuple[Tensor | int, ...],
    *,
    append: bool,
    chunk: int,
) -> None:
    """Pass 3 of sample.sample: the lines whose rows have top_k, top_p or min_p. `bounds` [L] float32: infinity for
    all other lines; the rest is that function's."""
    num_lines, vocab_size = logits.shape
    num_chunks = stats[0].shape[1]
    counts = torch.empty((num_lines, num_chunks), dtype=torch.int32, device=logits.device)
    few = torch.empty((num_lines, FEW), dtype=torch.float32, device=logits.device)
    few_ids = torch.empty((num_lines, FEW), dtype=torch.int32, device=logits.device)
    chunks = triton.next_power_of_2(num_chunks)
    source, sizes = (logits, logits.stride(0), stats[0]), (vocab_size, num_chunks)
    for writes in (False, True):
        _gather[(num_lines, num_chunks)](
            *source,
            bounds,
            counts,
            few,
            few_ids,
            vocab_size,
            WRITES=writes,
            FEW=FEW,
            CHUNK=chunk,
            CHUNKS=chunks,
            num_warps=GATHER_WARPS,
        )
    shape = {"APPEND": append, "CHUNKS": chunks}
    few_shape = {"FEW": FEW, "COLUMNS": COLUMNS, "num_warps": RANK_WARPS}
    _pick_among_few[(num_lines,)](*stats, counts, few, few_ids, *rows, *sizes, **shape, **few_shape)
    pick_among_many[(num_lines,)](*source, stats[1], *rows, *sizes, **shape, BLOCK=BLOCK, num_warps=SEARCH_WARPS)


@triton.jit
def _gather(
    logits,
    stride,
    maxima,
    bounds,
    counts,
    few,
    few_ids,
    vocab_size,
    WRITES: tl.constexpr,
    FEW: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Count the tokens of a chunk that reach their line's bound; or, once all are counted, write them down."""
    line, chunk = tl.program_id(0), tl.program_id(1)
    num_chunks = tl.num_programs(1)
    counts += line * num_chunks
    bound = tl.load(bounds + line)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = logits + line.to(tl.int64) * stride + token
    if WRITES:
        if tl.load(counts + chunk) > 0:
            every = tl.arange(0, CHUNKS)
            of_chunk = tl.load(counts + every, mask=every < num_chunks, other=0)
            if tl.sum(of_chunk) <= FEW:
                value = tl.load(values, mask=token < vocab_size, other=float("-inf"))
                reaches = value >= bound
                before = tl.sum(tl.where(every < chunk, of_chunk, 0))
                place = line * FEW + before + tl.cumsum(reaches.to(tl.int32)) - 1
                tl.store(few + place, value, mask=reaches)
                tl.store(few_ids + place, token, mask=reaches)
    else:
        count = tl.full((), 0, tl.int32)
        if (bound < float("inf")) & (tl.load(maxima + line * num_chunks + chunk) >= bound):
            value = tl.load(values, mask=token < vocab_size, other=float("-inf"))
            count = tl.sum((value >= bound).to(tl.int32))
        tl.store(counts + chunk, count)


@triton.jit
def _pick_among_few(
    maxima,
    sums,
    counts,
    few,
    few_ids,
    line_rows,
    sampling,
    num_prompt,
    known,
    tokens,
    tokens_stride,
    token_ids,
    vocab_size,
    num_chunks,
    APPEND: tl.constexpr,
    CHUNKS: tl.constexpr,
    FEW: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sample the lines whose tokens were gathered; mark the other truncated lines as pending."""
    line = tl.program_id(0)
    row = tl.load(line_rows + line)
    if row >= 0:
        words = sampling + row * SAMPLING_WORDS
        if is_truncated(words, vocab_size):
            chunk = tl.arange(0, CHUNKS)
            exists = chunk < num_chunks
            of_chunk = tl.load(maxima + line * num_chunks + chunk, mask=exists, other=float("-inf"))
            weight = tl.load(sums + line * num_chunks + chunk, mask=exists, other=0.0)
            largest = tl.max(of_chunk)
            token = tl.full((), -1, tl.int32)
            if is_samplable(largest, tl.sum(weight)):
                token = tl.full((), PENDING, tl.int32)
                count = tl.sum(tl.load(counts + line * num_chunks + chunk, mask=exists, other=0))
                if count <= FEW:
                    scale = exponent_scale(words)
                    total = tl.sum((weight * tl.exp2((of_chunk - largest) * scale)).to(tl.float64))
                    number = uniform(words, tl.load(known + row) - tl.load(num_prompt + row))
                    values = few + line * FEW
                    place = _draw_ranked(values, words, number, largest, scale, total, count, vocab_size, FEW, COLUMNS)
                    if place >= 0:
                        token = tl.load(few_ids + line * FEW + place)
            if token == PENDING:
                tl.store(token_ids + line, PENDING)
            else:
                finish(token, line, row, token_ids, known, tokens, tokens_stride, APPEND)


@triton.jit
def _draw_ranked(
    values, words, number, largest, scale, total, count, vocab_size, FEW: tl.constexpr, COLUMNS: tl.constexpr
):
    """The place among the gathered tokens that is drawn; -1 if they do not weigh what top_p asks for."""
    top_k, top_p, floor = tl.load(words + TOP_K), float_word(words, TOP_P), tl.minimum(float_word(words, MIN_P), 1.0)
    place = tl.arange(0, FEW)
    value = tl.load(values + place, mask=place < count, other=float("-inf"))
    weight = tl.exp2((value - largest) * scale)
    num_before, weight_before = tl.zeros((FEW,), tl.int32), tl.zeros((FEW,), tl.float32)
    for begin in tl.range(0, count, COLUMNS):
        other = begin + tl.arange(0, COLUMNS)
        other_value = tl.load(values + other, mask=other < count, other=float("-inf"))
        other_weight = tl.exp2((other_value - largest) * scale)
        is_tied = (other_value[None, :] == value[:, None]) & (other[None, :] < place[:, None])
        precedes = (other_value[None, :] > value[:, None]) | is_tied
        precedes = precedes & ((other < count) & (other_weight >= floor))[None, :]
        num_before += tl.sum(precedes.to(tl.int32), axis=1)
        weight_before += tl.sum(tl.where(precedes, other_weight[None, :], 0.0), axis=1)
    is_limited = limits_count(words, vocab_size)
    kept = (place < count) & (weight >= floor)
    if is_limited:
        kept = kept & (num_before < top_k)
    weight_kept = tl.sum(tl.where(kept, weight, 0.0).to(tl.float64))
    if is_limited | (floor > 0):
        total = weight_kept
    wanted = tl.where(top_p < 1, top_p.to(tl.float64) * total, total * 2)
    kept = kept & ((weight_before.to(tl.float64) < wanted) | (num_before == 0))
    weight = tl.where(kept, weight, 0.0)
    drawn = position_of_mass(weight, number * tl.sum(weight.to(tl.float64)), 0, FEW)
    return tl.where((top_p < 1) & (weight_kept < wanted), -1, drawn)
