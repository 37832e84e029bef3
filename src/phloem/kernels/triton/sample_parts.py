# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What the sampler's kernels share: a row's parameters, its random number, the inverse of a cumulative sum."""

from __future__ import annotations

import triton
import triton.language as tl

from phloem.kernels.triton import packed

GREEDY: tl.constexpr = tl.constexpr(1e-5)  # temperatures below are 0, as SamplingParams.is_greedy says
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
SAMPLING_WORDS: tl.constexpr = tl.constexpr(packed.SAMPLING_WORDS)
TOP_P: tl.constexpr = tl.constexpr(packed.TOP_P)
MIN_P: tl.constexpr = tl.constexpr(packed.MIN_P)
TOP_K: tl.constexpr = tl.constexpr(packed.TOP_K)
SEED_LOW: tl.constexpr = tl.constexpr(packed.SEED_LOW)
SEED_HIGH: tl.constexpr = tl.constexpr(packed.SEED_HIGH)
LOWEST: tl.constexpr = tl.constexpr(-3.4028234e38)
LARGEST_EXPONENT: tl.constexpr = tl.constexpr(150.0)  # 2^-150 is 0 in float32
SLACK: tl.constexpr = tl.constexpr(0.99)  # bounds by weight are this much lower than without rounding


@triton.jit
def float_word(words, index: tl.constexpr):
    return tl.load(words + index).to(tl.float32, bitcast=True)


@triton.jit
def exponent_scale(words):
    """s such that exp(x / temperature) = 2^(s x); that of temperature 1 for a greedy row."""
    temperature = float_word(words, 0)
    return LOG2_E / tl.where(temperature < GREEDY, 1.0, temperature)


@triton.jit
def limits_count(words, vocab_size):
    """Whether the row's top_k leaves anything out."""
    top_k = tl.load(words + TOP_K)
    return (top_k > 0) & (top_k < vocab_size)


@triton.jit
def is_truncated(words, vocab_size):
    """Whether the row is drawn from a part of the vocabulary."""
    limits = limits_count(words, vocab_size) | (float_word(words, TOP_P) < 1) | (float_word(words, MIN_P) > 0)
    return limits & (float_word(words, 0) >= GREEDY)


@triton.jit
def bound_of_head(words, of_chunk, largest, scale, total, num_likely, vocab_size, num_chunks):
    """A logit that every token which the row's rules leave reaches. `of_chunk`: the chunks' largest logits.

    Under top_p alone that is sure only if `num_likely` is the vocabulary's size: tokens of less than the tail's share
    for each of them cannot outweigh the tail together. Of fewer that is likely, and to be checked.
    """
    top_k, top_p, floor = tl.load(words + TOP_K), float_word(words, TOP_P), tl.minimum(float_word(words, MIN_P), 1.0)
    bound = tl.maximum(largest - LARGEST_EXPONENT / scale, LOWEST)
    if floor > 0:
        bound = tl.maximum(bound, largest + tl.log2(floor * SLACK) / scale)
    elif limits_count(words, vocab_size):
        if top_k <= num_chunks:  # then so many tokens reach the top_k-th largest of the chunks' largest
            num_larger = tl.sum((of_chunk[None, :] > of_chunk[:, None]).to(tl.int32), axis=1)
            bound = tl.maximum(bound, tl.min(tl.where(num_larger < top_k, of_chunk, float("inf"))))
    elif top_p < 1:
        share = ((1.0 - top_p.to(tl.float64)) * total / num_likely).to(tl.float32) * SLACK
        bound = tl.maximum(bound, largest + tl.log2(tl.maximum(share, 1.2e-38)) / scale)
    return bound


@triton.jit
def is_samplable(largest, total):
    """Whether a line of this maximum and sum of exponentials (NaN if any logit is NaN or infinite) has a token."""
    return (total == total) & (largest > float("-inf")) & (largest < float("inf"))


@triton.jit
def uniform(words, num_generated):
    """The row's next random number in [0, 1), float64 with 53 bits: draw.uniform on the device."""
    low = tl.load(words + SEED_LOW).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(words + SEED_HIGH).to(tl.uint32, bitcast=True).to(tl.uint64)
    counter = num_generated.to(tl.uint32)
    zero = counter * 0
    first, second, _, _ = tl.philox((high << 32) | low, counter, zero, zero, zero)
    bits = ((first.to(tl.uint64) << 32) | second.to(tl.uint64)) >> 11
    return bits.to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def position_of_mass(weight, wanted, start, BLOCK: tl.constexpr):
    """start + the first index at which the sum of `weight` [BLOCK] exceeds `wanted`: never one of weight 0."""
    index = tl.arange(0, BLOCK)
    mass = tl.cumsum(weight.to(tl.float64))
    position = tl.sum((mass <= wanted).to(tl.int32))
    last = tl.max(tl.where(weight > 0, index, 0))  # `wanted` was a rounding error above the sum
    return start + tl.minimum(position, last)


@triton.jit
def finish(token, line, row, token_ids, known, tokens, tokens_stride, APPEND: tl.constexpr):
    """Report the token and append it to its row, unless it is -1 or the row is full."""
    tl.store(token_ids + line, token)
    if APPEND:
        place = tl.load(known + row)
        tl.debug_barrier()  # every thread has read `known`
        if (token >= 0) & (place < tokens_stride):
            tl.store(tokens + row.to(tl.int64) * tokens_stride + place, token)
            tl.store(known + row, place + 1)
