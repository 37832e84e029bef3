# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What a row's request changes about its logits before a token is drawn: in place, only in the lines that ask for it.

    listed    one program a line: logit bias, then end tokens held back until min_tokens
    chunks    one program a chunk of a line: penalties, then the mask of a constraint

The rules are those of runtime/exec/sampling/adjust.py, to the rounding of a multiply-add. Which tokens a row has, and
how often, is counted anew each time from its known tokens: so nothing is to be kept in step with rows that start, end
or are preempted, and 256 rows of 1,000 tokens read a megabyte from the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton import packed
from phloem.kernels.triton.row_tensors import RowTensors
from phloem.kernels.triton.sample_parts import SAMPLING_WORDS, float_word

CHUNK = 2048
LISTED_BLOCK, TOKENS_BLOCK = 256, 1024

LISTED_WORDS: tl.constexpr = tl.constexpr(packed.LISTED_WORDS)
LISTED_ENDS: tl.constexpr = tl.constexpr(packed.LISTED_ENDS)
LISTED_BIASES: tl.constexpr = tl.constexpr(packed.LISTED_BIASES)
LISTED_VALUES: tl.constexpr = tl.constexpr(packed.LISTED_VALUES)
REPETITION: tl.constexpr = tl.constexpr(packed.REPETITION)
PRESENCE: tl.constexpr = tl.constexpr(packed.PRESENCE)
FREQUENCY: tl.constexpr = tl.constexpr(packed.FREQUENCY)
MIN_TOKENS: tl.constexpr = tl.constexpr(packed.MIN_TOKENS)
NUM_BIASES: tl.constexpr = tl.constexpr(packed.NUM_BIASES)
NUM_ENDS: tl.constexpr = tl.constexpr(packed.NUM_ENDS)
HAS_MASK: tl.constexpr = tl.constexpr(packed.HAS_MASK)


def adjust(logits: Tensor, line_rows: Tensor, store: RowTensors) -> None:
    """Change logits [L, V] float32 (lines may be strided) as device rows line_rows [L] int32 ask; -1: do not."""
    num_lines, vocab_size = logits.shape
    if not num_lines:
        return
    rows = (line_rows, store.sampling, store.num_prompt, store.known)
    _adjust_listed[(num_lines,)](
        logits, logits.stride(0), *rows, store.listed, vocab_size, BLOCK=LISTED_BLOCK, num_warps=4
    )
    _adjust_chunks[(num_lines, triton.cdiv(vocab_size, CHUNK))](
        logits,
        logits.stride(0),
        *rows,
        store.tokens,
        store.tokens.stride(0),
        store.masks,
        store.masks.stride(0),
        vocab_size,
        CHUNK=CHUNK,
        BLOCK=TOKENS_BLOCK,
        num_warps=8,
    )


@triton.jit
def _adjust_listed(logits, stride, line_rows, sampling, num_prompt, known, listed, vocab_size, BLOCK: tl.constexpr):
    """Add the biases of a line, each to another token; then hold its end tokens back."""
    line = tl.program_id(0)
    row = tl.load(line_rows + line)
    if row >= 0:
        words = sampling + row * SAMPLING_WORDS
        values = logits + line.to(tl.int64) * stride
        mine = listed + row * LISTED_WORDS
        count = tl.load(words + NUM_BIASES)
        for begin in tl.range(0, count, BLOCK):
            index = begin + tl.arange(0, BLOCK)
            token = tl.load(mine + LISTED_BIASES + index, mask=index < count, other=0)
            bias = tl.load(mine + LISTED_VALUES + index, mask=index < count, other=0).to(tl.float32, bitcast=True)
            exists = (index < count) & (token < vocab_size)
            tl.store(values + token, tl.load(values + token, mask=exists, other=0.0) + bias, mask=exists)
        if tl.load(known + row) - tl.load(num_prompt + row) < tl.load(words + MIN_TOKENS):
            tl.debug_barrier()  # every bias is added
            num_ends = tl.load(words + NUM_ENDS)
            for begin in tl.range(0, num_ends, BLOCK):
                index = begin + tl.arange(0, BLOCK)
                token = tl.load(mine + LISTED_ENDS + index, mask=index < num_ends, other=0)
                exists = (index < num_ends) & (token < vocab_size)
                tl.store(values + token, tl.full((BLOCK,), float("-inf"), tl.float32), mask=exists)


@triton.jit
def _adjust_chunks(
    logits,
    stride,
    line_rows,
    sampling,
    num_prompt,
    known,
    tokens,
    tokens_stride,
    masks,
    masks_stride,
    vocab_size,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Penalise the tokens of a chunk, then forbid those that the mask does not allow."""
    line, chunk = tl.program_id(0), tl.program_id(1)
    row = tl.load(line_rows + line).to(tl.int64)
    if row >= 0:
        words = sampling + row * SAMPLING_WORDS
        repetition, presence, frequency = (
            float_word(words, REPETITION),
            float_word(words, PRESENCE),
            float_word(words, FREQUENCY),
        )
        penalises = (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0)
        has_mask = tl.load(words + HAS_MASK) != 0
        if penalises | has_mask:
            token = chunk * CHUNK + tl.arange(0, CHUNK)
            place = logits + line.to(tl.int64) * stride + token
            value = tl.load(place, mask=token < vocab_size, other=float("-inf"))
            if penalises:
                mine, first, count = tokens + row * tokens_stride, tl.load(num_prompt + row), tl.load(known + row)
                value = _penalised(value, mine, first, count, chunk, repetition, presence, frequency, CHUNK, BLOCK)
            if has_mask:
                bits = tl.load(masks + row * masks_stride + token // 32, mask=token < vocab_size, other=0)
                value = tl.where(((bits >> (token % 32)) & 1) != 0, value, float("-inf"))
            tl.store(place, value, mask=token < vocab_size)


@triton.jit
def _penalised(
    value, tokens, num_prompt, known, chunk, repetition, presence, frequency, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """The logits of a chunk less what their tokens' occurrences cost: repetition asks for any, in the prompt too."""
    generated, anywhere = tl.zeros((CHUNK,), tl.int32), tl.zeros((CHUNK,), tl.int32)
    for begin in tl.range(tl.where(repetition == 1.0, num_prompt, 0), known, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        offset = tl.load(tokens + index, mask=index < known, other=-1) - chunk * CHUNK
        is_here = (offset >= 0) & (offset < CHUNK) & (index < known)
        offset = tl.where(is_here, offset, 0)
        anywhere += tl.histogram(offset, CHUNK, mask=is_here)
        generated += tl.histogram(offset, CHUNK, mask=is_here & (index >= num_prompt))
    repeated = tl.where(value > 0, value / repetition, value * repetition)
    value = tl.where(anywhere > 0, repeated, value)
    value -= frequency * generated.to(tl.float32)
    return value - tl.where(generated > 0, presence, 0.0)
