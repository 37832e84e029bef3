# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Attention of rows with one or a few queries: bound by the bytes of their keys and values.

A row's keys are cut into units (blocks of BLOCK_N keys). Each KV head's programs share the units of all rows evenly, in
row order, so a batch of short and long rows keeps the machine busy to the end (the Stream-K split of Osama et al. 2023
applied to the split-KV decoding of Dao et al. 2023). A program walks its span row by row. A row that lies in one
span is finished there; of any other, each program leaves a partial result that attention_merge.py joins:

    rows       | 0       | 1  | 2                    | 3     |      units of one KV head
    programs   | a         | b         | c         | d       |      row 0: a.  row 1: a, b.  row 2: b, c, d.  row 3: d.
    slots of partial results: 2p for a row that began before program p, 2p + 1 for one that begins in it and goes on

In deterministic mode a unit is FIXED_CHUNK keys and every unit is a segment of its own, in slot row * num_chunks +
unit: what is added to what does not depend on the other rows. Its tile is that of attention_extend.py, so that a token
has the same bits whether it was computed alone or in a chunk. All query heads of a KV head are one tile of a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.attention_inputs import (
    UNALIGNED,
    VARYING,
    AttentionInputs,
    fixed_tile,
    tile_height,
    vector_length,
)
from phloem.kernels.triton.attention_shape import FIXED_CHUNK
from phloem.kernels.triton.attention_tile import (
    attend_keys,
    follow_launch,
    row_units,
    softmax_end,
    softmax_start,
)
from phloem.kernels.triton.fp8 import FP8, as_operand
from phloem.kernels.triton.launch import Launcher

MIN_KEYS = 128  # a program takes at least this many keys, so that short rows are not cut into crumbs


@triton.jit
def _find_share(
    share, num_shares, num_rows, query_start, context_len, row_prefix, window, MIN_UNITS: tl.constexpr,
    UNIT: tl.constexpr, ROWS_PAD: tl.constexpr, WINDOWED: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """(first unit, stop, units a share, row of the first unit, units of all rows before that row) of a program."""
    rows = tl.arange(0, ROWS_PAD)
    sizes, _ = row_units(rows, num_rows, query_start, context_len, row_prefix, window, UNIT, WINDOWED, SHARED)
    ends, total = tl.cumsum(sizes, 0), tl.sum(sizes, 0)
    units_each = tl.maximum(tl.cdiv(total, num_shares), MIN_UNITS)
    unit = share * units_each
    row = tl.sum((ends <= unit).to(tl.int32), 0)
    return unit, tl.minimum(unit + units_each, total), units_each, row, tl.max(tl.where(ends <= unit, ends, 0), 0)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _decode_kernel(
    out, partial, partial_lse, spans, q, kv, query_start, context_len, block_table, row_prefix,
    page_stride, value_stride, slot_stride, table_stride, num_rows, num_chunks, window, scale_log2,
    RATIO: tl.constexpr, PACKED: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    TILE_M: tl.constexpr, BLOCK_N: tl.constexpr, UNIT: tl.constexpr, MIN_UNITS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    ROWS_PAD: tl.constexpr, WINDOWED: tl.constexpr, SHARED: tl.constexpr, FIXED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow_launch(EARLY)
    head, share = tl.program_id(0) % KV_HEADS, tl.program_id(0) // KV_HEADS
    num_shares = tl.num_programs(0) // KV_HEADS
    unit, last, units_each, row, row_begin = _find_share(
        share, num_shares, num_rows, query_start, context_len, row_prefix, window,
        MIN_UNITS, UNIT, ROWS_PAD, WINDOWED, SHARED,
    )  # fmt: skip
    packed, dims = tl.arange(0, TILE_M), tl.arange(0, DIM_PAD)
    open_row, open_last = -1, 0
    while unit < last:
        size, first = row_units(row, num_rows, query_start, context_len, row_prefix, window, UNIT, WINDOWED, SHARED)
        row_end = row_begin + size
        end = tl.minimum(tl.minimum(row_end, last), unit + 1) if FIXED else tl.minimum(row_end, last)
        if size > 0:
            token, context = tl.load(query_start + row), tl.load(context_len + row)
            num_queries = tl.load(query_start + row + 1) - token
            lowest = tl.load(row_prefix + row) if SHARED else 0
            where = (token + packed // RATIO).to(tl.int64) * (KV_HEADS * RATIO) + head * RATIO + packed % RATIO
            where = where[:, None] * HEAD_DIM + dims[None, :]
            held = (packed < num_queries * RATIO)[:, None] & (dims < HEAD_DIM)[None, :]
            position = context - num_queries + packed // RATIO
            acc, row_max, row_sum = softmax_start(TILE_M, DIM_PAD)
            acc, row_max, row_sum = attend_keys(
                acc, row_max, row_sum, as_operand(tl.load(q + where, mask=held, other=0.0), kv),
                tl.maximum(position - window + 1 if WINDOWED else position * 0, lowest), position,
                (first + unit - row_begin) * UNIT, tl.minimum((first + end - row_begin) * UNIT, context),
                kv, None, head, block_table + row.to(tl.int64) * table_stride,
                page_stride, value_stride, slot_stride, scale_log2, HEAD_DIM, BLOCK_N, PAGE_SIZE,
                True, WINDOWED or SHARED,
            )  # fmt: skip
            result, lse = softmax_end(acc, row_max, row_sum)
            begins, whole = unit == row_begin, (unit == row_begin) & (end == row_end)
            if whole & (lowest == 0):
                tl.store(out + where, result.to(out.dtype.element_ty), mask=held)
            else:
                slot = row * num_chunks + unit - row_begin if FIXED else 2 * share + begins.to(tl.int32)
                if SHARED:
                    slot = tl.where(whole, 2 * num_shares + row, slot)
                slot = (slot.to(tl.int64) * KV_HEADS + head) * PACKED + packed
                tl.store(partial_lse + slot, lse, mask=packed < num_queries * RATIO)
                tl.store(partial + slot[:, None] * DIM_PAD + dims[None, :], result, mask=held)
            if SHARED:
                tl.store(spans + 2 * row, share, mask=begins & (head == 0))
                tl.store(spans + 2 * row + 1, (row_end - 1) // units_each, mask=begins & (head == 0))
            goes_on = begins & (end < row_end)
            open_row = tl.where(goes_on, row, open_row)
            open_last = tl.where(goes_on, (row_end - 1) // units_each, open_last)
        row_begin = tl.where(end == row_end, row_end, row_begin)
        row += (end == row_end).to(tl.int32)
        unit = end
    if (not SHARED) & (head == 0):
        tl.store(spans + 2 * share, open_row)
        tl.store(spans + 2 * share + 1, open_last)


_launch_decode = Launcher(_decode_kernel)


@dataclass(frozen=True)
class DecodeTiling:
    """How the decode kernel is compiled and spread: `programs_per_sm` programs a multiprocessor share the work."""

    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int


@dataclass(frozen=True)
class Partials:
    """Results of pieces of rows: `values` [slots, K, packed, dim_pad] and `lse` [slots, K, packed], both float32, for
    `packed` queries times the query heads of a KV head.

    `spans` int32: of each program, the row that begins in it and goes on (-1: none) and the last program of that row;
    with shared prefixes [rows, 2] instead, the first and last program of each row. Unused in deterministic mode.
    """

    values: Tensor
    lse: Tensor
    spans: Tensor
    packed: int
    num_shares: int


def choose_tiling(inputs: AttentionInputs, tile_m: int) -> DecodeTiling:
    """Fixed by shape; the table of variants behind it is printed by bench/gpu_attention.py --tune."""
    if inputs.shape.deterministic:
        tile = fixed_tile(inputs)
        return DecodeTiling(tile.block_n, tile.num_warps, 3, 2) if inputs.dim_pad <= 128 else DecodeTiling(32, 4, 2, 1)
    if inputs.dim_pad > 128:
        return DecodeTiling(32, 4, 3, 2)
    if inputs.kv_cache.dtype == FP8:  # half the bytes, the same instructions: bound by these
        return DecodeTiling(64, 2, 3, 4)
    if inputs.dim_pad < 128:
        return DecodeTiling(128, 4, 3, 3)
    return DecodeTiling(64, 4, 3, 2)


def decode(
    inputs: AttentionInputs,
    out: Tensor,
    *,
    num_rows: int,
    max_query_len: int,
    row_prefix: Tensor | None,
    tiling: DecodeTiling | None = None,
) -> Partials:
    """Attend the leading `num_rows` rows of up to `max_query_len` queries; writes `out` of rows done in one piece.

    `row_prefix` int32 [rows]: leading keys of a row that another kernel attends (attention_shared.py).
    """
    shape, fixed, num_kv_heads = inputs.shape, inputs.shape.deterministic, inputs.num_kv_heads
    packed = inputs.ratio * max_query_len
    tile_m = fixed_tile(inputs).tile_m if fixed else tile_height(packed)
    tiling = tiling or choose_tiling(inputs, tile_m)
    num_shares = max(1, inputs.num_processors * tiling.programs_per_sm // num_kv_heads)
    num_slots = 2 * num_shares + (num_rows if row_prefix is not None else 0)
    if fixed:
        num_slots = num_rows * shape.num_fixed_chunks
    partials = Partials(
        values=inputs.empty(num_slots, num_kv_heads, packed, inputs.dim_pad),
        lse=inputs.empty(num_slots, num_kv_heads, packed),
        spans=inputs.empty(max(num_rows, num_shares), 2, dtype=torch.int32),
        packed=packed,
        num_shares=num_shares,
    )
    _launch_decode(
        (num_shares * num_kv_heads, 1, 1),
        out, partials.values, partials.lse, partials.spans, inputs.q, inputs.kv_cache, inputs.query_start,
        inputs.context_len, inputs.block_table, row_prefix, *inputs.cache_strides, inputs.block_table.stride(0),
        num_rows, shape.num_fixed_chunks, inputs.window or 0, inputs.scale_log2,
        kind=inputs.kind,
        constants={
            "RATIO": inputs.ratio, "PACKED": packed, "KV_HEADS": num_kv_heads, "HEAD_DIM": inputs.head_dim,
            "DIM_PAD": inputs.dim_pad, "TILE_M": tile_m, "BLOCK_N": tiling.block_n,
            "UNIT": FIXED_CHUNK if fixed else tiling.block_n,
            "MIN_UNITS": 1 if fixed else max(1, MIN_KEYS // tiling.block_n), "PAGE_SIZE": inputs.page_size,
            "ROWS_PAD": vector_length(num_rows), "WINDOWED": inputs.window is not None,
            "SHARED": row_prefix is not None, "FIXED": fixed, "EARLY": inputs.starts_early,
        },
        num_warps=tiling.num_warps, num_stages=tiling.num_stages, early=inputs.starts_early,
    )  # fmt: skip
    return partials
