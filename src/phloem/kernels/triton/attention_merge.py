# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Joins what several programs found about pieces of the same row, by their log-sum-exps.

A program does one query of one row: its pieces are the decode kernel's slots of the row (attention_decode.py draws
them) and, where the row shares a prefix, one result for each split of the prefix (attention_shared.py).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.attention_decode import Partials
from phloem.kernels.triton.attention_inputs import UNALIGNED, VARYING, AttentionInputs
from phloem.kernels.triton.attention_shape import FIXED_CHUNK
from phloem.kernels.triton.attention_shared import SharedPartials
from phloem.kernels.triton.attention_tile import follow_launch, join_weights, row_units, zero_tail
from phloem.kernels.triton.launch import Launcher

PIECES = 32  # partial results joined at once
AT_ONCE = tl.constexpr(8)  # loaded at once in deterministic mode, where they are joined one by one


@triton.jit
def _join(acc, total, largest, values, lse, where, held, DIM_PAD: tl.constexpr):
    """Add the pieces at `where` [PIECES] (rows of `values`, entries of `lse`) to a running weighted sum [d]."""
    piece_lse = tl.load(lse + where, mask=held, other=float("-inf"))
    piece = tl.load(values + where[:, None] * DIM_PAD + tl.arange(0, DIM_PAD)[None, :], mask=held[:, None], other=0.0)
    new_largest = tl.maximum(largest, tl.max(piece_lse, 0))
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp2(piece_lse - base)
    factor = tl.exp2(largest - base)
    return acc * factor + tl.sum(piece * weights[:, None], 0), total * factor + tl.sum(weights, 0), new_largest


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _merge_kernel(
    out, values, lse, spans, prefix_values, prefix_lse, row_entry, query_start, context_len,
    num_rows, num_all_rows, num_tokens, num_shares, num_splits, num_chunks, queries, window,
    RATIO: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    WIDTH_PAD: tl.constexpr, PACKED: tl.constexpr, UNIT: tl.constexpr, WINDOWED: tl.constexpr,
    SHARED: tl.constexpr, FIXED: tl.constexpr, PIECES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow_launch(EARLY)
    row, head, packed = tl.program_id(0), tl.program_id(1) // queries, tl.program_id(1) % queries
    if not SHARED and not FIXED:  # one program a share of the decode kernel: few rows lie in several
        first, row = row, tl.load(spans + 2 * row)
        count = tl.where(row < 0, 0, tl.load(spans + 2 * first + 1) - first + 1)
        row = tl.maximum(row, 0)
    token, token_stop = tl.load(query_start + row), tl.load(query_start + row + 1)
    entry = tl.load(row_entry + row) if SHARED else -1
    if FIXED:
        first = row * num_chunks
        count, _ = row_units(row, num_rows, query_start, context_len, None, window, UNIT, WINDOWED, False)
    if SHARED:
        first = tl.load(spans + 2 * row)
        count = tl.load(spans + 2 * row + 1) - first + 1
    if (packed < (token_stop - token) * RATIO) & ((count > 1) | (entry >= 0)):
        steps, dims = tl.arange(0, PIECES), tl.arange(0, DIM_PAD)
        acc, total, largest = tl.zeros([DIM_PAD], tl.float32), 0.0, float("-inf")
        if FIXED:  # one after the other, as attention_extend.py does
            for done in range(0, count, AT_ONCE):
                for ahead in tl.static_range(
                    AT_ONCE
                ):  # what lies beyond the last piece weighs nothing and changes none
                    piece = done + ahead
                    where = ((first + piece).to(tl.int64) * KV_HEADS + head) * PACKED + packed
                    piece_lse = tl.load(lse + where, mask=piece < count, other=float("-inf"))
                    part = tl.load(values + where * DIM_PAD + dims, mask=(piece < count) & (dims >= 0), other=0.0)
                    weight, factor, largest, total = join_weights(piece_lse, largest, total)
                    acc = tl.fma(part, weight, acc * factor)
        else:
            for done in range(0, count, PIECES):
                piece = done + steps
                slot = 2 * (first + piece) + (piece == 0).to(tl.int32)
                if SHARED:
                    slot = tl.where(count == 1, 2 * num_shares + row, slot)
                where = (slot.to(tl.int64) * KV_HEADS + head) * PACKED + packed
                acc, total, largest = _join(acc, total, largest, values, lse, where, piece < count, DIM_PAD)
        if SHARED:
            for done in range(0, tl.where(entry >= 0, num_splits, 0), PIECES):
                piece = done + steps
                where = ((entry * num_splits + piece).to(tl.int64) * KV_HEADS + head) * RATIO + packed
                acc, total, largest = _join(
                    acc, total, largest, prefix_values, prefix_lse, where, piece < num_splits, DIM_PAD
                )
        where = (token + packed // RATIO).to(tl.int64) * (KV_HEADS * RATIO) + head * RATIO + packed % RATIO
        result = acc / tl.where(total == 0.0, 1.0, total)
        tl.store(out + where * HEAD_DIM + dims, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
    if tl.program_id(1) == 0:
        zero_tail(out, query_start, num_all_rows, num_tokens, KV_HEADS * RATIO * HEAD_DIM, WIDTH_PAD)


_launch_merge = Launcher(_merge_kernel)


def merge(
    inputs: AttentionInputs,
    out: Tensor,
    partials: Partials,
    prefix: SharedPartials | None,
    *,
    num_rows: int,
    max_query_len: int,
) -> None:
    """Write `out` [T, H d] for those of the leading `num_rows` rows that were attended in several pieces."""
    queries = inputs.ratio * max_query_len
    by_row = prefix is not None or inputs.shape.deterministic
    _launch_merge(
        (num_rows if by_row else partials.num_shares, inputs.num_kv_heads * queries, 1),
        out, partials.values, partials.lse, partials.spans, prefix.values if prefix else None, prefix.lse if
        prefix else None, prefix.row_entry if prefix else None, inputs.query_start, inputs.context_len,
        num_rows, inputs.shape.num_rows, inputs.shape.num_tokens, partials.num_shares, prefix.num_splits if
        prefix else 0, inputs.shape.num_fixed_chunks, queries, inputs.window or 0,
        kind=inputs.kind,
        constants={
            "RATIO": inputs.ratio, "KV_HEADS": inputs.num_kv_heads, "HEAD_DIM": inputs.head_dim,
            "DIM_PAD": inputs.dim_pad, "WIDTH_PAD": triton.next_power_of_2(inputs.num_heads * inputs.head_dim),
            "PACKED": partials.packed, "UNIT": FIXED_CHUNK, "WINDOWED": inputs.window is not None,
            "SHARED": prefix is not None, "FIXED": inputs.shape.deterministic, "PIECES": PIECES,
            "EARLY": inputs.starts_early,
        },
        num_warps=4, early=inputs.starts_early,
    )  # fmt: skip
