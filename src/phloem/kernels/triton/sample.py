# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""One token for each logit line, on the device, without a sort and without waiting for the host.

    sample(logits, line_rows, store, truncates=any row of the step has top_k, top_p or min_p) -> token ids [L] int32

    pass 1   one program a chunk of a line: its largest logit, and the sum of its exponentials
    pass 2   one program a line: which chunk, then which token of it; the token is appended to its row
    pass 3   (if `truncates`) the same for lines with top_k, top_p or min_p, see truncate.py

So a plain line reads its logits once, and one chunk again. The rules, their order and the random number are those of
runtime/exec/sampling (support.py, draw.py): Philox4x32-10 keyed by the row's seed and counted by its generated tokens
gives all 53 bits; the token is where that number falls in the cumulative distribution in id order, in float64 over
float32 weights. Device and host therefore draw the same token, but for numbers within rounding (about 1e-6) of an edge.
Greedy lines (temperature under 1e-5) take the lowest id of the largest logit, exactly. Every sum has a fixed order: a
line's token does not depend on the other lines.

Constraints, penalties, logit bias and min_tokens change the logits before (adjust.py); log-probabilities are taken
after (report.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.row_tensors import RowTensors
from phloem.kernels.triton.sample_parts import (
    GREEDY,
    SAMPLING_WORDS,
    bound_of_head,
    exponent_scale,
    finish,
    float_word,
    is_samplable,
    is_truncated,
    position_of_mass,
    uniform,
)
from phloem.kernels.triton.truncate import FEW, sample_truncated

CHUNK = 2048  # logits a program of pass 1 reads, and pass 2 reads again
CHUNK_WARPS = 4
LINE_WARPS = 8


def sample(
    logits: Tensor, line_rows: Tensor, store: RowTensors, *, truncates: bool = True, append: bool = True
) -> Tensor:
    """Token ids [L] int32 of logits [L, V] float32 (rows may be strided), for the device rows line_rows [L] int32.

    -1 where line_row is negative or where no logit is a finite maximum (NaN or infinity among them, or all minus
    infinity): such a row appends nothing. With `append`, a token becomes its row's next known token. `truncates` False
    leaves pass 3 out: then a row's top_k, top_p and min_p are not looked at.
    """
    num_lines, vocab_size = logits.shape
    token_ids = torch.empty(num_lines, dtype=torch.int32, device=logits.device)
    if not num_lines:
        return token_ids
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    stats = (chunk_numbers(logits, num_chunks), chunk_numbers(logits, num_chunks))  # maxima, sums
    _weigh_chunks[(num_lines, num_chunks)](
        logits,
        logits.stride(0),
        line_rows,
        store.sampling,
        stats[0],
        stats[1],
        vocab_size,
        CHUNK,
        num_warps=CHUNK_WARPS,
    )
    bounds = torch.empty(num_lines, dtype=torch.float32, device=logits.device)
    rows = (line_rows, store.sampling, store.num_prompt, store.known, store.tokens, store.tokens.stride(0), token_ids)
    sizes = (vocab_size, num_chunks)
    _pick[(num_lines,)](
        logits,
        logits.stride(0),
        stats[0],
        stats[1],
        bounds,
        *rows,
        *sizes,
        TRUNCATES=truncates,
        NUM_LIKELY=min(FEW, vocab_size),
        APPEND=append,
        CHUNK=CHUNK,
        CHUNKS=triton.next_power_of_2(num_chunks),
        num_warps=LINE_WARPS,
    )
    if truncates:
        sample_truncated(logits, stats, bounds, rows, append=append, chunk=CHUNK)
    return token_ids


def chunk_numbers(logits: Tensor, num_chunks: int) -> Tensor:
    """Room for a number a chunk: [L, num_chunks] float32. Each is its own tensor: a view's place in memory would be
    aligned for some L only, and triton compiles a kernel anew for that."""
    return torch.empty((len(logits), num_chunks), dtype=torch.float32, device=logits.device)


@triton.jit
def _weigh_chunks(logits, stride, line_rows, sampling, maxima, sums, vocab_size, CHUNK: tl.constexpr):
    """The largest logit of a chunk, and the sum of exp((logit - largest) / temperature): NaN if any logit is NaN or
    infinite, 0 if all are minus infinity."""
    line, chunk = tl.program_id(0), tl.program_id(1)
    row = tl.load(line_rows + line)
    if row >= 0:
        scale = exponent_scale(sampling + row * SAMPLING_WORDS)
        token = chunk * CHUNK + tl.arange(0, CHUNK)
        value = tl.load(logits + line.to(tl.int64) * stride + token, mask=token < vocab_size, other=float("-inf"))
        largest = tl.max(value)
        base = tl.where(largest == float("-inf"), 0.0, largest)
        place = line * tl.num_programs(1) + chunk
        tl.store(maxima + place, largest)
        tl.store(sums + place, tl.sum(tl.exp2((value - base) * scale)))


@triton.jit
def _pick(
    logits,
    stride,
    maxima,
    sums,
    bounds,
    line_rows,
    sampling,
    num_prompt,
    known,
    tokens,
    tokens_stride,
    token_ids,
    vocab_size,
    num_chunks,
    TRUNCATES: tl.constexpr,
    NUM_LIKELY: tl.constexpr,
    APPEND: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The token of every plain line, and the bound of every truncated one."""
    line = tl.program_id(0)
    row = tl.load(line_rows + line)
    token, bound = tl.full((), -1, tl.int32), tl.full((), float("inf"), tl.float32)
    is_plain = row >= 0
    if row >= 0:
        words = sampling + row * SAMPLING_WORDS
        if TRUNCATES:
            is_plain = is_truncated(words, vocab_size) == 0
        chunk = tl.arange(0, CHUNKS)
        exists = chunk < num_chunks
        of_chunk = tl.load(maxima + line * num_chunks + chunk, mask=exists, other=float("-inf"))
        weight = tl.load(sums + line * num_chunks + chunk, mask=exists, other=0.0)
        largest = tl.max(of_chunk)
        if is_samplable(largest, tl.sum(weight)):
            values = logits + line.to(tl.int64) * stride
            scale = exponent_scale(words)
            if not is_plain:
                total = tl.sum((weight * tl.exp2((of_chunk - largest) * scale)).to(tl.float64))
                bound = bound_of_head(words, of_chunk, largest, scale, total, NUM_LIKELY, vocab_size, num_chunks)
            elif float_word(words, 0) < GREEDY:
                first = tl.min(tl.where(of_chunk == largest, chunk, CHUNKS))
                token = _first_equal(values, largest, first * CHUNK, vocab_size, CHUNK)
            else:
                number = uniform(words, tl.load(known + row) - tl.load(num_prompt + row))
                token = _draw(values, scale, of_chunk, weight, largest, number, vocab_size, CHUNK, CHUNKS)
    if TRUNCATES:
        tl.store(bounds + line, bound)
    if is_plain:
        finish(token, line, row, token_ids, known, tokens, tokens_stride, APPEND)
    elif row < 0:
        tl.store(token_ids + line, -1)


@triton.jit
def _first_equal(values, wanted, start, vocab_size, CHUNK: tl.constexpr):
    """The first token from `start` on whose logit is `wanted`; it is in that chunk."""
    token = start + tl.arange(0, CHUNK)
    value = tl.load(values + token, mask=token < vocab_size, other=float("-inf"))
    return tl.min(tl.where(value == wanted, token, vocab_size - 1))


@triton.jit
def _draw(values, scale, of_chunk, weight, largest, number, vocab_size, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """The token at `number` (in [0, 1)) of the whole distribution."""
    weight = (weight * tl.exp2((of_chunk - largest) * scale)).to(tl.float64)
    mass = tl.cumsum(weight)
    wanted = number * tl.max(mass)
    last = tl.max(tl.where(weight > 0, tl.arange(0, CHUNKS), 0))
    chosen = tl.minimum(tl.sum((mass <= wanted).to(tl.int32)), last)
    before = tl.max(tl.where(tl.arange(0, CHUNKS) < chosen, mass, 0.0))
    token = chosen * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(values + token, mask=token < vocab_size, other=float("-inf"))
    return position_of_mass(tl.exp2((value - largest) * scale), wanted - before, chosen * CHUNK, CHUNK)
