# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What a row's request changes about its logits before a token is drawn: in place, only in the lines that ask for it.

    few       one program a line: logit bias; end tokens held back until min_tokens; penalties
    masks     one program a chunk of a line: minus infinity for the tokens that a constraint forbids

The rules are those of runtime/exec/sampling/adjust.py, to the rounding of a multiply-add. A row's tokens are counted
anew each time, so nothing is to be kept in step with rows that start, end or are preempted: each of its tokens adds to
`counts` at its id, then takes the count away again, and the one that finds it changes the logit. Whatever the order,
every count is found once, and `counts` is zero afterwards.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton import packed
from phloem.kernels.triton.row_tensors import RowTensors
from phloem.kernels.triton.sample_parts import SAMPLING_WORDS, float_word

CHUNK = 4096
LISTED_BLOCK, TOKENS_BLOCK = 256, 1024

IN_PROMPT: tl.constexpr = tl.constexpr(-(1 << 31))  # the sign of a count: the token stands in the prompt
GENERATED: tl.constexpr = tl.constexpr((1 << 31) - 1)  # the rest of it: how often it was generated

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
    _adjust_few[(num_lines,)](
        logits,
        logits.stride(0),
        line_rows,
        store.sampling,
        store.num_prompt,
        store.known,
        store.tokens,
        store.tokens.stride(0),
        store.listed,
        store.counts,
        store.counts.stride(0),
        vocab_size,
        LISTED_BLOCK=LISTED_BLOCK,
        TOKENS_BLOCK=TOKENS_BLOCK,
        num_warps=8,
    )
    _apply_masks[(num_lines, triton.cdiv(vocab_size, CHUNK))](
        logits,
        logits.stride(0),
        line_rows,
        store.sampling,
        store.masks,
        store.masks.stride(0),
        vocab_size,
        CHUNK=CHUNK,
        num_warps=4,
    )


@triton.jit
def _adjust_few(
    logits,
    stride,
    line_rows,
    sampling,
    num_prompt,
    known,
    tokens,
    tokens_stride,
    listed,
    counts,
    counts_stride,
    vocab_size,
    LISTED_BLOCK: tl.constexpr,
    TOKENS_BLOCK: tl.constexpr,
):
    """Add the biases of a line, hold its end tokens back, penalise its tokens."""
    line = tl.program_id(0)
    row = tl.load(line_rows + line).to(tl.int64)
    if row >= 0:
        words = sampling + row * SAMPLING_WORDS
        values = logits + line.to(tl.int64) * stride
        first, count = tl.load(num_prompt + row), tl.load(known + row)
        mine = listed + row * LISTED_WORDS
        _add_biases(values, mine, tl.load(words + NUM_BIASES), vocab_size, LISTED_BLOCK)
        if count - first < tl.load(words + MIN_TOKENS):
            tl.debug_barrier()  # every bias is added
            _hold_back(values, mine + LISTED_ENDS, tl.load(words + NUM_ENDS), vocab_size, LISTED_BLOCK)
        repetition, presence = float_word(words, REPETITION), float_word(words, PRESENCE)
        frequency = float_word(words, FREQUENCY)
        if (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0):
            known_tokens, counts_here = tokens + row * tokens_stride, counts + row * counts_stride
            begin = tl.where(repetition == 1.0, first, 0)
            _count(known_tokens, counts_here, begin, first, count, vocab_size, TOKENS_BLOCK)
            tl.debug_barrier()  # all are counted, and all that came before is done
            penalties = (repetition, presence, frequency)
            _penalise(values, known_tokens, counts_here, begin, count, penalties, vocab_size, TOKENS_BLOCK)


@triton.jit
def _add_biases(values, listed, count, vocab_size, BLOCK: tl.constexpr):
    """Each to another token."""
    for begin in tl.range(0, count, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        token = tl.load(listed + LISTED_BIASES + index, mask=index < count, other=0)
        bias = tl.load(listed + LISTED_VALUES + index, mask=index < count, other=0).to(tl.float32, bitcast=True)
        exists = (index < count) & (token < vocab_size)
        tl.store(values + token, tl.load(values + token, mask=exists, other=0.0) + bias, mask=exists)


@triton.jit
def _hold_back(values, listed, count, vocab_size, BLOCK: tl.constexpr):
    for begin in tl.range(0, count, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        token = tl.load(listed + index, mask=index < count, other=0)
        exists = (index < count) & (token < vocab_size)
        tl.store(values + token, tl.full((BLOCK,), float("-inf"), tl.float32), mask=exists)


@triton.jit
def _count(tokens, counts, begin, num_prompt, known, vocab_size, BLOCK: tl.constexpr):
    """Count the tokens begin .. known at their ids."""
    for start in tl.range(begin, known, BLOCK):
        index = start + tl.arange(0, BLOCK)
        token = tl.load(tokens + index, mask=index < known, other=0)
        exists = (index < known) & (token < vocab_size)
        is_generated = index >= num_prompt
        tl.atomic_or(counts + token, IN_PROMPT, mask=exists & (index < num_prompt), sem="relaxed")
        tl.atomic_add(counts + token, 1, mask=exists & is_generated, sem="relaxed")


@triton.jit
def _penalise(values, tokens, counts, begin, known, penalties, vocab_size, BLOCK: tl.constexpr):
    """Take each count away, and what it costs from the token's logit."""
    repetition, presence, frequency = penalties
    for start in tl.range(begin, known, BLOCK):
        index = start + tl.arange(0, BLOCK)
        token = tl.load(tokens + index, mask=index < known, other=0)
        exists = (index < known) & (token < vocab_size)
        count = tl.atomic_xchg(counts + token, 0, mask=exists, sem="relaxed")
        is_first = exists & (count != 0)
        generated = (count & GENERATED).to(tl.float32)
        value = tl.load(values + token, mask=is_first, other=0.0)
        value = tl.where(value > 0, value / repetition, value * repetition)
        value -= frequency * generated
        value -= tl.where(generated > 0, presence, 0.0)
        tl.store(values + token, value, mask=is_first)


@triton.jit
def _apply_masks(logits, stride, line_rows, sampling, masks, masks_stride, vocab_size, CHUNK: tl.constexpr):
    line, chunk = tl.program_id(0), tl.program_id(1)
    row = tl.load(line_rows + line).to(tl.int64)
    if tl.load(sampling + row * SAMPLING_WORDS + HAS_MASK, mask=row >= 0, other=0) != 0:
        token = chunk * CHUNK + tl.arange(0, CHUNK)
        bits = tl.load(masks + row * masks_stride + token // 32, mask=token < vocab_size, other=0)
        is_forbidden = (((bits >> (token % 32)) & 1) == 0) & (token < vocab_size)
        place = logits + line.to(tl.int64) * stride + token
        tl.store(place, tl.full((CHUNK,), float("-inf"), tl.float32), mask=is_forbidden)
