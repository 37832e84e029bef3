# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Attention of a group of rows over the prefix they have in common: its pages are read once for all of them.

A tile is the queries of several rows of a group (one query a row, times the query heads of a KV head) against the keys
of the prefix; the prefix is cut into `num_splits` pieces of equal length. attention_decode.py attends what follows the
prefix, row by row, and attention_merge.py joins both by their log-sum-exps (Juravsky et al. 2024, "Hydragen").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.attention_inputs import UNALIGNED, VARYING, AttentionInputs, tile_height, vector_length
from phloem.kernels.triton.attention_tile import attend_keys, follow_launch, softmax_end, softmax_start
from phloem.kernels.triton.fp8 import as_operand
from phloem.kernels.triton.launch import Launcher

MAX_SPLITS = 32
MIN_SPLIT_KEYS = 256


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _group_rows_kernel(
    row_entry, row_prefix, shared_start, shared_rows, shared_pages, query_start, context_len, num_entries, num_groups,
    PAGE_SIZE: tl.constexpr, ENTRIES_PAD: tl.constexpr, GROUPS_PAD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Of each row: its place in shared_rows and the length of its shared prefix; -1 and 0 without a group."""
    follow_launch(EARLY)
    row = tl.program_id(0)
    places, groups = tl.arange(0, ENTRIES_PAD), tl.arange(0, GROUPS_PAD)
    valid = places < tl.minimum(tl.load(shared_start + num_groups), num_entries)
    hits = valid & (tl.load(shared_rows + places, mask=valid, other=-1) == row)
    entry = tl.max(tl.where(hits, places, -1), 0)
    ends = tl.load(shared_start + groups + 1, mask=groups < num_groups, other=2147483647)
    group = tl.sum((ends <= entry).to(tl.int32), 0)
    single = tl.load(query_start + row + 1) - tl.load(query_start + row) == 1
    prefix = tl.load(shared_pages + group, mask=entry >= 0, other=0) * PAGE_SIZE
    prefix = tl.where(single, tl.minimum(prefix, tl.load(context_len + row)), 0)
    tl.store(row_prefix + row, prefix)
    tl.store(row_entry + row, tl.where(prefix > 0, entry, -1))


_launch_group_rows = Launcher(_group_rows_kernel)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def _shared_kernel(
    values, lse, q, kv, query_start, context_len, block_table, shared_start, shared_rows, shared_pages,
    page_stride, value_stride, slot_stride, table_stride, num_rows, num_splits, tiles_per_group, window, scale_log2,
    RATIO: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, WINDOWED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow_launch(EARLY)
    tile, head, split = tl.program_id(0) % tiles_per_group, tl.program_id(1), tl.program_id(2)
    group = tl.program_id(0) // tiles_per_group
    start = tl.load(shared_start + group)
    packed = tile * TILE_M + tl.arange(0, TILE_M)
    num_packed = (tl.load(shared_start + group + 1) - start) * RATIO
    if tile * TILE_M < num_packed:
        entry = start + packed // RATIO
        row = tl.load(shared_rows + entry, mask=packed < num_packed, other=num_rows)
        single = row < num_rows  # the rows after them have several queries: they attend their whole context alone
        token = tl.load(query_start + row, mask=single, other=0)
        position = tl.load(context_len + row, mask=single, other=2147483647) - 1
        dims = tl.arange(0, DIM_PAD)
        where = (token.to(tl.int64) * (KV_HEADS * RATIO) + head * RATIO + packed % RATIO)[:, None] * HEAD_DIM
        q_tile = tl.load(q + where + dims[None, :], mask=single[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        q_tile = as_operand(q_tile, kv)
        prefix = tl.load(shared_pages + group) * PAGE_SIZE
        keys_each = tl.cdiv(tl.cdiv(prefix, BLOCK_N), num_splits) * BLOCK_N
        begin, stop = split * keys_each, tl.minimum((split + 1) * keys_each, prefix)
        table = block_table + tl.load(shared_rows + start).to(tl.int64) * table_stride
        acc, row_max, row_sum = softmax_start(TILE_M, DIM_PAD)
        if not WINDOWED:
            seen_by_all = tl.minimum(stop, tl.min(position, 0) + 1)
            whole = begin + tl.maximum(seen_by_all - begin, 0) // BLOCK_N * BLOCK_N
            acc, row_max, row_sum = attend_keys(
                acc, row_max, row_sum, q_tile, position, position, begin, whole, kv, None, head, table,
                page_stride, value_stride, slot_stride, scale_log2, HEAD_DIM, BLOCK_N, PAGE_SIZE, False, False,
            )  # fmt: skip
            begin = whole
        acc, row_max, row_sum = attend_keys(
            acc, row_max, row_sum, q_tile, position - window + 1, tl.minimum(position, prefix - 1), begin, stop,
            kv, None, head, table, page_stride, value_stride, slot_stride, scale_log2,
            HEAD_DIM, BLOCK_N, PAGE_SIZE, True, WINDOWED,
        )  # fmt: skip
        result, result_lse = softmax_end(acc, row_max, row_sum)
        slot = ((entry * num_splits + split).to(tl.int64) * KV_HEADS + head) * RATIO + packed % RATIO
        tl.store(lse + slot, result_lse, mask=packed < num_packed)
        tl.store(values + slot[:, None] * DIM_PAD + dims[None, :], result, mask=(packed < num_packed)[:, None])


_launch_shared = Launcher(_shared_kernel)


@dataclass(frozen=True)
class SharedPartials:
    """Results over shared prefixes.

    `values` [entries, num_splits, K, H / K, dim_pad] and `lse` without the last dim, float32, by place in shared_rows;
    `row_entry` and `row_prefix` int32 [rows]: a row's place (-1: in no group) and the length of its prefix in tokens.
    """

    values: Tensor
    lse: Tensor
    row_entry: Tensor
    row_prefix: Tensor
    num_splits: int


@dataclass(frozen=True)
class SharedTiling:
    """How the shared-prefix kernel is compiled."""

    tile_m: int
    block_n: int
    num_warps: int
    num_stages: int


def choose_tiling(inputs: AttentionInputs, max_group_rows: int) -> SharedTiling:
    """Fixed by shape: a tile of one warpgroup, two of which fit on a multiprocessor; smaller for a small group."""
    return SharedTiling(tile_height(max_group_rows * inputs.ratio), 32 if inputs.dim_pad > 128 else 64, 4, 3)


def attend_shared(
    inputs: AttentionInputs,
    shared_start: Tensor,
    shared_rows: Tensor,
    shared_pages: Tensor,
    *,
    num_rows: int,
    tiling: SharedTiling | None = None,
) -> SharedPartials:
    """Attend the shared prefixes for those of the leading `num_rows` rows (one query each) that are in a group."""
    num_groups, num_entries = inputs.shape.num_shared, shared_rows.shape[0]
    max_group_rows = inputs.shape.max_group_rows or num_rows
    tiling = tiling or choose_tiling(inputs, max_group_rows)
    row_entry, row_prefix = (inputs.empty(num_rows, dtype=torch.int32) for _ in range(2))
    _launch_group_rows(
        (num_rows, 1, 1),
        row_entry, row_prefix, shared_start, shared_rows, shared_pages, inputs.query_start, inputs.context_len,
        num_entries, num_groups,
        kind=inputs.kind,
        constants={
            "PAGE_SIZE": inputs.page_size, "ENTRIES_PAD": vector_length(num_entries),
            "GROUPS_PAD": vector_length(num_groups), "EARLY": inputs.starts_early,
        },
        num_warps=1, early=inputs.starts_early,
    )  # fmt: skip
    tiles_per_group = -(-max_group_rows * inputs.ratio // tiling.tile_m)
    num_splits = choose_splits(inputs, num_groups * tiles_per_group * inputs.num_kv_heads)
    partials = SharedPartials(
        values=inputs.empty(num_entries, num_splits, inputs.num_heads, inputs.dim_pad),
        lse=inputs.empty(num_entries, num_splits, inputs.num_heads),
        row_entry=row_entry,
        row_prefix=row_prefix,
        num_splits=num_splits,
    )
    _launch_shared(
        (num_groups * tiles_per_group, inputs.num_kv_heads, num_splits),
        partials.values, partials.lse, inputs.q, inputs.kv_cache, inputs.query_start, inputs.context_len,
        inputs.block_table, shared_start, shared_rows, shared_pages, *inputs.cache_strides,
        inputs.block_table.stride(0), num_rows, num_splits, tiles_per_group, inputs.window or 0,
        inputs.scale_log2,
        kind=inputs.kind,
        constants={
            "RATIO": inputs.ratio, "KV_HEADS": inputs.num_kv_heads, "HEAD_DIM": inputs.head_dim,
            "DIM_PAD": inputs.dim_pad, "TILE_M": tiling.tile_m, "BLOCK_N": tiling.block_n,
            "PAGE_SIZE": inputs.page_size, "WINDOWED": inputs.window is not None, "EARLY": inputs.starts_early,
        },
        num_warps=tiling.num_warps, num_stages=tiling.num_stages, early=inputs.starts_early,
    )  # fmt: skip
    return partials


def choose_splits(inputs: AttentionInputs, num_tiles: int) -> int:
    """Pieces of a prefix: as many as fill the device once with two programs a multiprocessor, none of them tiny."""
    most = min(MAX_SPLITS, -(-inputs.shape.max_context_len // MIN_SPLIT_KEYS))
    return max(1, min(most, 2 * inputs.num_processors // num_tiles))
