# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Sampling from a large part of the vocabulary: a flat distribution, or a top_k beyond what can be ranked.

What min_p, top_k and top_p leave is the head of one order (larger logit first, equal logits by lower id), so it is
described by a threshold and by how many of the tokens exactly at the threshold belong to it:

    min_p    weights under it are passed over everywhere
    top_k    threshold: the largest logit that at least top_k tokens reach
    top_p    threshold: the largest logit whose head weighs at least top_p of what the rules before it left
    draw     one walk over the head in id order

A threshold is searched for between two logits: each pass weighs four heads at once and keeps a fifth of the interval
(or, as its ends snap to logits that exist, less), until one logit is left: some seven passes over 150,000 tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from phloem.kernels.triton.sample_parts import (
    MIN_P,
    SAMPLING_WORDS,
    TOP_K,
    TOP_P,
    bound_of_head,
    exponent_scale,
    finish,
    float_word,
    position_of_mass,
    uniform,
)

PENDING: tl.constexpr = tl.constexpr(-2)  # in place of a token id: the line is left to this file
EVERY: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def pick_among_many(
    logits,
    stride,
    maxima,
    sums,
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
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Sample the pending lines; one program a line."""
    line = tl.program_id(0)
    if tl.load(token_ids + line) == PENDING:
        row = tl.load(line_rows + line)
        words = sampling + row * SAMPLING_WORDS
        chunk = tl.arange(0, CHUNKS)
        exists = chunk < num_chunks
        of_chunk = tl.load(maxima + line * num_chunks + chunk, mask=exists, other=float("-inf"))
        weight = tl.load(sums + line * num_chunks + chunk, mask=exists, other=0.0)
        largest = tl.max(of_chunk)
        scale = exponent_scale(words)
        total = tl.sum((weight * tl.exp2((of_chunk - largest) * scale)).to(tl.float64))
        number = uniform(words, tl.load(known + row) - tl.load(num_prompt + row))
        bound = bound_of_head(words, of_chunk, largest, scale, total, vocab_size, vocab_size, num_chunks)
        values = logits + line.to(tl.int64) * stride
        token = _draw(values, words, number, bound, largest, scale, total, vocab_size, BLOCK)
        finish(token, line, row, token_ids, known, tokens, tokens_stride, APPEND)


@triton.jit
def _draw(values, words, number, bound, largest, scale, total, count, BLOCK: tl.constexpr):
    """The token that is drawn; `total` is the weight of all `count` tokens."""
    floor = tl.minimum(float_word(words, MIN_P), 1.0)
    threshold, room, total = _head(values, words, bound, largest, scale, floor, total, count, BLOCK)
    return _walk(values, threshold, room, number * total, largest, scale, floor, count, BLOCK)


@triton.jit
def _head(values, words, bound, largest, scale, floor, total, count, BLOCK: tl.constexpr):
    """(threshold, how many tokens at it, the weight of both and of all above) of what a row's rules leave."""
    top_k, top_p = tl.load(words + TOP_K), float_word(words, TOP_P)
    threshold = bound
    room = tl.full((), EVERY, tl.int32)
    if (top_k > 0) & (top_k < count):
        threshold = _search(values, bound, top_k.to(tl.float64), largest, scale, floor, count, True, BLOCK)
    if (top_k > 0) | (floor > 0):
        above, num_above, num_equal = _weigh(values, threshold, largest, scale, floor, count, BLOCK)
        room = tl.where(top_k > 0, top_k - num_above, EVERY)
        total = above + tl.minimum(room, num_equal) * tl.exp2((threshold - largest) * scale).to(tl.float64)
    if top_p < 1:
        wanted = top_p.to(tl.float64) * total
        edge = _search(values, threshold, wanted, largest, scale, floor, count, False, BLOCK)
        above, num_above, num_equal = _weigh(values, edge, largest, scale, floor, count, BLOCK)
        weight = tl.exp2((edge - largest) * scale).to(tl.float64)
        needed = tl.minimum(tl.maximum(tl.ceil((wanted - above) / weight), 1.0), 1e9).to(tl.int32)
        room = tl.where(edge == threshold, tl.minimum(room, needed), needed)
        total = above + tl.minimum(room, num_equal) * weight
        threshold = edge
    return threshold, room, total


@triton.jit
def _read(values, block, largest, scale, floor, count, BLOCK: tl.constexpr):
    """Logits and weights of a block; minus infinity and 0 where the weight is under `floor`."""
    place = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + place, mask=place < count, other=float("-inf"))
    weight = tl.exp2((value - largest) * scale)
    return tl.where(weight >= floor, value, float("-inf")), tl.where(weight >= floor, weight, 0.0)


@triton.jit
def _search(values, low, wanted, largest, scale, floor, count, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit, at least `low`, whose head (itself, its equals and all above) counts or weighs `wanted`.

    The head of `low` must reach `wanted`; where it does not, `low` or the smallest logit above it.
    """
    high = largest
    while low < high:
        step = high * 0.2 - low * 0.2
        next_up = _neighbour(low, 1)
        edge_1, edge_2 = tl.maximum(low + step, next_up), tl.maximum(low + 2 * step, next_up)
        edge_3, edge_4 = tl.maximum(low + 3 * step, next_up), tl.maximum(low + 4 * step, next_up)
        head_1, head_2 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        head_3, head_4 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        least, most = tl.full((BLOCK,), float("inf"), tl.float32), tl.full((BLOCK,), float("-inf"), tl.float32)
        for block in tl.range(0, tl.cdiv(count, BLOCK), num_stages=3):
            value, weight = _read(values, block, largest, scale, floor, count, BLOCK)
            if COUNTS:
                weight = tl.full((BLOCK,), 1.0, tl.float32)
            head_1 += tl.where(value >= edge_1, weight, 0.0)
            head_2 += tl.where(value >= edge_2, weight, 0.0)
            head_3 += tl.where(value >= edge_3, weight, 0.0)
            head_4 += tl.where(value >= edge_4, weight, 0.0)
            least = tl.minimum(least, tl.where(value >= low, value, float("inf")))
            most = tl.maximum(most, tl.where(value <= high, value, float("-inf")))
        new_low, new_high = tl.maximum(low, tl.min(least)), tl.minimum(high, tl.max(most))
        new_low, new_high = _narrow(new_low, new_high, edge_1, _sum(head_1) >= wanted)
        new_low, new_high = _narrow(new_low, new_high, edge_2, _sum(head_2) >= wanted)
        new_low, new_high = _narrow(new_low, new_high, edge_3, _sum(head_3) >= wanted)
        low, high = _narrow(new_low, new_high, edge_4, _sum(head_4) >= wanted)
    return tl.minimum(low, largest)


@triton.jit
def _sum(head):
    return tl.sum(head.to(tl.float64))


@triton.jit
def _narrow(low, high, edge, reaches):
    """The interval above `edge` where its head reaches, else that below it."""
    return tl.where(reaches, tl.maximum(low, edge), low), tl.where(
        reaches, high, tl.minimum(high, _neighbour(edge, -1))
    )


@triton.jit
def _neighbour(value, by: tl.constexpr):
    """The next larger (by = 1) or smaller (by = -1) float32."""
    bits = value.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) + by
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _weigh(values, threshold, largest, scale, floor, count, BLOCK: tl.constexpr):
    """(weight above the threshold, number above it, number exactly at it)."""
    above = tl.zeros((BLOCK,), tl.float32)
    num_above, num_equal = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for block in tl.range(0, tl.cdiv(count, BLOCK), num_stages=3):
        value, weight = _read(values, block, largest, scale, floor, count, BLOCK)
        above += tl.where(value > threshold, weight, 0.0)
        num_above += (value > threshold).to(tl.int32)
        num_equal += (value == threshold).to(tl.int32)
    return _sum(above), tl.sum(num_above), tl.sum(num_equal)


@triton.jit
def _walk(values, threshold, room, wanted, largest, scale, floor, count, BLOCK: tl.constexpr):
    """The place at weight `wanted` of the head, in id order: first its block, then where in it.

    `chosen` is the last block with any weight that was looked at, `mass_before` and `equal_before` what came before it.
    """
    # No two of these may start as the same value: the compiler would take them for one variable.
    block, chosen = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    num_equal, equal_before = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    mass, mass_before = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    while (block < tl.cdiv(count, BLOCK)) & (mass <= wanted):
        value, weight = _read(values, block, largest, scale, floor, count, BLOCK)
        of_block = _sum(_kept(value, weight, threshold, room - num_equal))
        has_weight = of_block > 0
        chosen = tl.where(has_weight, block, chosen)
        mass_before = tl.where(has_weight, mass, mass_before)
        equal_before = tl.where(has_weight, num_equal, equal_before)
        mass += of_block
        num_equal += tl.sum((value == threshold).to(tl.int32))
        block += 1
    value, weight = _read(values, chosen, largest, scale, floor, count, BLOCK)
    kept = _kept(value, weight, threshold, room - equal_before)
    return position_of_mass(kept, wanted - mass_before, chosen * BLOCK, BLOCK)


@triton.jit
def _kept(value, weight, threshold, room):
    """The weights of the head's tokens in a chunk: all above the threshold, the first `room` at it."""
    is_equal = value == threshold
    rank = tl.cumsum(is_equal.to(tl.int32))
    return tl.where((value > threshold) | (is_equal & (rank <= room)), weight, 0.0)
