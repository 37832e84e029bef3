# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Causal attention of rows with many queries over their cached and new keys: bound by the tensor cores.

A row's queries, times the query heads of a KV head, are packed token by token and cut into tiles of TILE_M; the tiles
of all rows form one list, so ragged batches need no padding. A program finds its tile's row on the device and takes the
list from the back, where the queries with the most keys of a long row stand, so that the last programs are short ones.
Keys that every query of the tile sees go through a loop without masks (FlashAttention-2, Dao 2023).

In deterministic mode a row's keys are attended in chunks of FIXED_CHUNK and the results joined one after the other: the
sums that attention_decode.py and attention_merge.py make for a row of one query.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.attention_inputs import UNALIGNED, VARYING, AttentionInputs, fixed_tile, vector_length
from phloem.kernels.triton.attention_shape import FIXED_CHUNK
from phloem.kernels.triton.attention_tile import (
    attend_keys,
    follow_launch,
    join_weights,
    softmax_end,
    softmax_start,
    zero_tail,
)
from phloem.kernels.triton.fp8 import as_operand
from phloem.kernels.triton.launch import Launcher


@triton.jit
def _find_tile(query_start, first_row, num_rows, RATIO: tl.constexpr, TILE_M: tl.constexpr, ROWS_PAD: tl.constexpr):
    """(row, tile of that row) of this program, heavy tiles first; row = num_rows: there is none left."""
    rows = first_row + tl.arange(0, ROWS_PAD)
    inside = rows < num_rows
    packed = tl.load(query_start + rows + 1, mask=inside, other=0) - tl.load(query_start + rows, mask=inside, other=0)
    tiles = tl.cdiv(packed * RATIO, TILE_M)
    ends = tl.cumsum(tiles, 0)
    tile = tl.sum(tiles, 0) - 1 - tl.program_id(0)
    row = first_row + tl.sum((ends <= tile).to(tl.int32), 0)
    before = tl.max(tl.where(ends <= tile, ends, 0), 0)
    return tl.where(tile < 0, num_rows, row), tile - before


@triton.jit
def _attend_range(
    q_tile, position, lowest, begin, stop, kv, kv_rows, head, table, page_stride, value_stride, slot_stride, window,
    scale_log2, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """(result [M, d], log-sum-exp [M]) over the keys begin .. stop of queries at `position` [M], the first of which is
    at `lowest`: a loop without masks over the keys that all of them see, then one with masks."""
    acc, row_max, row_sum = softmax_start(q_tile.shape[0], q_tile.shape[1])
    masked_from = begin
    if not WINDOWED:
        masked_from = tl.minimum(tl.maximum((lowest + 1) // BLOCK_N * BLOCK_N, begin), tl.maximum(stop, begin))
        acc, row_max, row_sum = attend_keys(
            acc, row_max, row_sum, q_tile, position, position, begin, masked_from, kv, kv_rows, head, table,
            page_stride, value_stride, slot_stride, scale_log2, HEAD_DIM, BLOCK_N, PAGE_SIZE, False, False,
        )  # fmt: skip
    acc, row_max, row_sum = attend_keys(
        acc, row_max, row_sum, q_tile, position - window + 1, position, masked_from, stop, kv, None, head, table,
        page_stride, value_stride, slot_stride, scale_log2, HEAD_DIM, BLOCK_N, PAGE_SIZE, True, WINDOWED,
    )  # fmt: skip
    return softmax_end(acc, row_max, row_sum)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _extend_kernel(
    out, q, kv, kv_rows, query_start, context_len, block_table, page_stride, value_stride, slot_stride, table_stride,
    first_row, num_rows, num_tokens, window, scale_log2,
    RATIO: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    WIDTH_PAD: tl.constexpr, TILE_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr,
    ROWS_PAD: tl.constexpr, WINDOWED: tl.constexpr, CHUNK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow_launch(EARLY)
    head = tl.program_id(1)
    row, tile = _find_tile(query_start, first_row, num_rows, RATIO, TILE_M, ROWS_PAD)
    if row < num_rows:
        token = tl.load(query_start + row)
        num_queries = tl.load(query_start + row + 1) - token
        before = tl.load(context_len + row) - num_queries  # keys before the row's first query
        packed, dims = tile * TILE_M + tl.arange(0, TILE_M), tl.arange(0, DIM_PAD)
        position = before + packed // RATIO
        lowest = before + tile * TILE_M // RATIO
        stop = before + tl.minimum((tile * TILE_M + TILE_M - 1) // RATIO + 1, num_queries)
        where = (token + packed // RATIO).to(tl.int64) * (KV_HEADS * RATIO) + head * RATIO + packed % RATIO
        where = where[:, None] * HEAD_DIM + dims[None, :]
        held = (packed < num_queries * RATIO)[:, None] & (dims < HEAD_DIM)[None, :]
        q_tile = as_operand(tl.load(q + where, mask=held, other=0.0), kv)
        table = block_table + row.to(tl.int64) * table_stride
        begin = tl.maximum(lowest - window + 1, 0) // BLOCK_N * BLOCK_N if WINDOWED else 0
        if CHUNK:
            joined, largest, total = softmax_start(TILE_M, DIM_PAD)
            for chunk in tl.range(begin // CHUNK * CHUNK, stop, CHUNK):
                part, part_lse = _attend_range(
                    q_tile, position, lowest, tl.maximum(chunk, begin), tl.minimum(chunk + CHUNK, stop),
                    kv, kv_rows, head, table, page_stride, value_stride, slot_stride, window, scale_log2,
                    HEAD_DIM, BLOCK_N, PAGE_SIZE, WINDOWED,
                )  # fmt: skip
                weight, factor, largest, total = join_weights(part_lse, largest, total)
                joined = tl.fma(part, tl.broadcast_to(weight[:, None], part.shape), joined * factor[:, None])
            result = joined / tl.where(total == 0.0, 1.0, total)[:, None]
        else:
            result, _ = _attend_range(
                q_tile, position, lowest, begin, stop,
                kv, kv_rows, head, table, page_stride, value_stride, slot_stride, window, scale_log2,
                HEAD_DIM, BLOCK_N, PAGE_SIZE, WINDOWED,
            )  # fmt: skip
        tl.store(out + where, result.to(out.dtype.element_ty), mask=held)
    if head == 0:
        zero_tail(out, query_start, num_rows, num_tokens, KV_HEADS * RATIO * HEAD_DIM, WIDTH_PAD)


_launch_extend = Launcher(_extend_kernel)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _zero_kernel(
    out, query_start, num_rows, num_tokens, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    follow_launch(EARLY)
    zero_tail(out, query_start, num_rows, num_tokens, WIDTH, WIDTH_PAD)


_launch_zero = Launcher(_zero_kernel)


@dataclass(frozen=True)
class ExtendTiling:
    """How the extend kernel is compiled."""

    tile_m: int
    block_n: int
    num_warps: int
    num_stages: int
    copied: bool = False  # keys and values by the copy engine, where the cache allows it


SHORT = 8192  # packed queries of a row: below, many small tiles fill the device better than few large ones


def choose_tiling(inputs: AttentionInputs) -> ExtendTiling:
    """Fixed by shape; the table of variants behind it is printed by bench/gpu_attention.py --tune."""
    if inputs.shape.deterministic:  # whatever the other rows are
        tile = fixed_tile(inputs)
        return ExtendTiling(tile.tile_m, tile.block_n, tile.num_warps, 2)
    packed = inputs.shape.max_query_len * inputs.ratio
    if inputs.dim_pad > 128:
        return ExtendTiling(64, 32, 4, 2) if packed <= SHORT else ExtendTiling(128, 64, 8, 2)
    if packed <= SHORT:
        return ExtendTiling(64, 64, 4, 3)
    if inputs.dim_pad < 128:
        return ExtendTiling(128, 64, 8, 3)
    if inputs.page_size >= 128:
        return ExtendTiling(128, 128, 8, 3, copied=True)
    return ExtendTiling(128, 64, 8, 3, copied=True) if inputs.page_size >= 64 else ExtendTiling(128, 128, 8, 2)


def extend(inputs: AttentionInputs, *, first_row: int, tiling: ExtendTiling | None = None) -> Tensor:
    """[T, H d] with the tokens of the rows from `first_row` on; those of earlier rows are left for others to write."""
    out = inputs.empty_out()
    shape, ratio = inputs.shape, inputs.ratio
    tiling = tiling or choose_tiling(inputs)
    num_rows = shape.num_rows - first_row
    max_tiles = shape.num_tokens * ratio // tiling.tile_m + num_rows  # each row may leave one tile unfilled
    _launch_extend(
        (max_tiles, inputs.num_kv_heads, 1),
        out, inputs.q, inputs.kv_cache, inputs.cache_rows(tiling.block_n) if tiling.copied else None,
        inputs.query_start, inputs.context_len, inputs.block_table, *inputs.cache_strides,
        inputs.block_table.stride(0), first_row, shape.num_rows, shape.num_tokens, inputs.window or 0,
        inputs.scale_log2,
        kind=inputs.kind,
        constants={
            "RATIO": ratio, "KV_HEADS": inputs.num_kv_heads, "HEAD_DIM": inputs.head_dim, "DIM_PAD": inputs.dim_pad,
            "WIDTH_PAD": triton.next_power_of_2(inputs.num_heads * inputs.head_dim), "TILE_M": tiling.tile_m,
            "BLOCK_N": tiling.block_n, "PAGE_SIZE": inputs.page_size, "ROWS_PAD": vector_length(num_rows),
            "WINDOWED": inputs.window is not None, "CHUNK": FIXED_CHUNK if shape.deterministic else 0,
            "EARLY": inputs.starts_early,
        },
        num_warps=tiling.num_warps, num_stages=tiling.num_stages, early=inputs.starts_early,
    )  # fmt: skip
    return out


def zero_unowned(inputs: AttentionInputs, out: Tensor) -> None:
    """Zero the tokens of `out` [T, H d] that no row owns."""
    shape, width = inputs.shape, inputs.num_heads * inputs.head_dim
    _launch_zero(
        (16, 1, 1),
        out, inputs.query_start, shape.num_rows, shape.num_tokens,
        kind=inputs.kind,
        constants={
            "WIDTH": width, "WIDTH_PAD": triton.next_power_of_2(width), "EARLY": inputs.starts_early,
        },
        num_warps=4,
        early=inputs.starts_early,
    )  # fmt: skip
