# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""rope_kv_write and paged_attention in one launch, for steps of a row or two.

    split          0      1      2      3          programs of one row and KV head, each with its part of the keys
    keys       |------|------|------|--*           * the new token's, which the last split writes and holds
                   partial results                 all but the last program to finish leave theirs and go
                        merge                      that one joins them (log-sum-exp), counted by a ticket

A chain of loads, each waiting for the one before, is all the time there is. So every program normalizes and rotates the
queries of its KV head for itself, the new key is used from registers, and what does not come from the kernel before is
read while that one still runs. That relies on the first op of a step (embed) starting only when the step's inputs
are written: it does, because it is launched without programmatic dependence.
Split-KV decoding: Dao et al. 2023, "Flash-Decoding". RoPE: Su et al. 2021, in the half-split form of GPT-NeoX.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.attention_tile import key_offsets, load_pages, softmax_end, softmax_start, softmax_step
from phloem.kernels.triton.launch import Launcher, starts_early

MAX_SPLITS = 16
MERGED_NUMBERS = 1 << 14  # partial results that the last program holds at once: 128 registers of each of its threads
TILE_M = 16  # the least rows of a product
NUM_STAGES = 3


class RopeAttention:
    """The op rope_attention on one device. Owns the tickets, which are all zero between launches."""

    def __init__(self, device: torch.device, *, max_tickets: int = 4096) -> None:
        self._tickets = torch.zeros(max_tickets, dtype=torch.int32, device=device)

    def __call__(
        self,
        qkv: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        positions: Tensor,
        slots: Tensor,
        inv_freq: Tensor,
        kv_cache: Tensor,
        query_start: Tensor,
        context_len: Tensor,
        block_table: Tensor,
        shared_start: Tensor,
        shared_rows: Tensor,
        shared_pages: Tensor,
        scale: float,
        window: int | None = None,
        *,
        shape: AttentionShape,
    ) -> Tensor:
        """[T, H d] as graph/ops/fused.py says; rows have at most one query. Shared prefixes are read row by row.

        Tokens that no row owns come out as zeros, and a negative slot writes nothing.
        """
        page_size, num_kv_heads, head_dim = kv_cache.shape[2:]
        num_rows, width = qkv.shape[0], qkv.shape[1]
        ratio = (width // head_dim - 2 * num_kv_heads) // num_kv_heads
        assert shape.max_query_len <= 1, "rows have one query each"
        assert qkv.is_contiguous(), "tokens lie side by side"
        assert kv_cache.stride()[3:] == (head_dim, 1), "heads of a token lie side by side"
        assert ratio <= TILE_M, "the query heads of a KV head are one tile"
        assert num_rows * num_kv_heads <= len(self._tickets), "a ticket for each row and KV head"
        dim_pad = max(16, triton.next_power_of_2(head_dim))
        merged = triton.next_power_of_2(ratio) * dim_pad
        num_splits = max(1, min(MAX_SPLITS, MERGED_NUMBERS // merged))
        out = qkv.new_empty(num_rows, num_kv_heads * ratio * head_dim)
        partial = torch.empty(num_rows, num_kv_heads, num_splits, ratio, head_dim, device=qkv.device)
        partial_lse = torch.empty(partial.shape[:4], device=qkv.device)
        has_norm = q_norm is not None and k_norm is not None
        early = starts_early(qkv.device)
        _launch(
            (num_splits, num_kv_heads, num_rows),
            out, partial, partial_lse, self._tickets, qkv, q_norm, k_norm, eps, positions, slots, inv_freq, kv_cache,
            query_start, context_len, block_table, *kv_cache.stride()[:3], block_table.stride(0), shape.num_rows,
            scale * math.log2(math.e), window or 0,
            kind=(qkv.device.index, qkv.dtype, kv_cache.dtype, q_norm.dtype if q_norm is not None else None,
                  kv_cache.stride()[:3]),
            constants={
                "RATIO": ratio, "KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim, "DIM_PAD": dim_pad,
                "TILE_M": TILE_M, "BLOCK_N": 32 if dim_pad > 128 else 64, "PAGE_SIZE": page_size,
                "SPLITS": num_splits, "HAS_NORM": has_norm, "WINDOWED": window is not None, "EARLY": early,
            },
            num_warps=4, num_stages=NUM_STAGES, early=early,
        )  # fmt: skip
        return out


@triton.jit
def _share(split, context, window, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """(first key in the window, first and last old key of this split, splits in use); the new token is no old key."""
    lowest = tl.maximum(context - window, 0) if WINDOWED else 0
    first_block = lowest // BLOCK_N
    num_blocks = tl.cdiv(context, BLOCK_N) - first_block
    blocks_each = tl.maximum(tl.cdiv(num_blocks, SPLITS), 1)
    begin = (first_block + split * blocks_each) * BLOCK_N
    stop = tl.minimum(begin + blocks_each * BLOCK_N, tl.maximum(context - 1, 0))
    return lowest, begin, stop, tl.maximum(tl.cdiv(num_blocks, blocks_each), 1)


@triton.jit
def _rotation(position, inv_freq, dims, HEAD_DIM: tl.constexpr):
    """(cos, signed sin, partner) of each dim: x turns into x * cos + x[partner] * sin."""
    HALF: tl.constexpr = HEAD_DIM // 2
    is_first = dims < HALF
    partner = tl.where(is_first, dims + HALF, dims - HALF)
    angle = position * tl.load(inv_freq + tl.where(is_first, dims, partner), mask=dims < HEAD_DIM, other=0.0)
    sin = tl.sin(angle)
    return tl.cos(angle), tl.where(is_first, -sin, sin), partner


@triton.jit
def _turn(
    source, gain, gain_other, cos, sin, eps, columns, other, held, HEAD_DIM: tl.constexpr, HAS_NORM: tl.constexpr
):
    """The heads at `source` [M, 1], normalized and rotated, [M, DIM_PAD] in their own type."""
    dtype: tl.constexpr = source.dtype.element_ty
    number = tl.load(source + columns, mask=held, other=0.0).to(tl.float32)
    partner = tl.load(source + other, mask=held, other=0.0).to(tl.float32)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(number * number, 1) / HEAD_DIM + eps)[:, None]
        # The reference rounds what it has normalized to the activation type before it rotates.
        number = (number * factor * gain).to(dtype).to(tl.float32)
        partner = (partner * factor * gain_other).to(dtype).to(tl.float32)
    return (number * cos + partner * sin).to(dtype)


@triton.jit
def _gains(q_norm, k_norm, dims, partner, HEAD_DIM: tl.constexpr, HAS_NORM: tl.constexpr):
    """The norms' weights, float32: of queries at the dims and at their partners, of keys likewise. Unused without."""
    exists = dims < HEAD_DIM
    ones = tl.where(exists, 1.0, 1.0)
    of_q, of_q_partner, of_k, of_k_partner = ones, ones, ones, ones
    if HAS_NORM:
        of_q = tl.load(q_norm + dims, mask=exists, other=0.0).to(tl.float32)
        of_q_partner = tl.load(q_norm + partner, mask=exists, other=0.0).to(tl.float32)
        of_k = tl.load(k_norm + dims, mask=exists, other=0.0).to(tl.float32)
        of_k_partner = tl.load(k_norm + partner, mask=exists, other=0.0).to(tl.float32)
    return of_q, of_q_partner, of_k, of_k_partner


@triton.jit
def _load_block(
    kv, table, first, lowest, stop, page_stride, value_stride, slot_stride,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """(keys, values, which of them exist): first .. first + BLOCK_N, of those lowest .. stop; nothing else is read."""
    keys, dims = first + tl.arange(0, BLOCK_N), tl.arange(0, DIM_PAD)
    seen = (keys >= lowest) & (keys < stop)
    pages = load_pages(table, first, stop, PAGE_SIZE, BLOCK_N)
    where = kv + key_offsets(pages, first, page_stride, slot_stride, PAGE_SIZE, BLOCK_N)[:, None] + dims[None, :]
    held = seen[:, None] & (dims < HEAD_DIM)[None, :]
    return tl.load(where, mask=held, other=0.0), tl.load(where + value_stride, mask=held, other=0.0), seen


@triton.jit
def _attend_block(acc, row_max, row_sum, q_tile, k_tile, v_tile, seen, scale_log2):
    """The running softmax after one more block."""
    scores = tl.where(seen[None, :], tl.dot(q_tile, k_tile.T, input_precision="ieee"), float("-inf"))
    weights, factor, row_max, row_sum = softmax_step(scores, row_max, row_sum, scale_log2, True)
    acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * factor[:, None], input_precision="ieee")
    return acc, row_max, row_sum


@triton.jit
def _merge(
    out, partial, partial_lse, num_used,
    RATIO: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Join the results of the first `num_used` splits and write the heads of one KV head."""
    RATIO_PAD: tl.constexpr = triton.next_power_of_2(RATIO)
    splits, heads, dims = tl.arange(0, SPLITS), tl.arange(0, RATIO_PAD), tl.arange(0, DIM_PAD)
    line = splits[:, None] * RATIO + heads[None, :]
    held = (splits < num_used)[:, None] & (heads < RATIO)[None, :]
    whole = held[:, :, None] & (dims < HEAD_DIM)[None, None, :]
    lse = tl.load(partial_lse + line, mask=held, other=float("-inf"), cache_modifier=".cg")
    where = partial + line[:, :, None] * HEAD_DIM + dims[None, None, :]
    piece = tl.load(where, mask=whole, other=0.0, cache_modifier=".cg")
    largest = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(largest == float("-inf"), 0.0, largest)[None, :])
    total = tl.sum(weights, 0)
    weights /= tl.where(total == 0.0, 1.0, total)[None, :]
    result = tl.sum(piece * weights[:, :, None], 0)
    there = (heads < RATIO)[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(out + heads[:, None] * HEAD_DIM + dims[None, :], result.to(out.dtype.element_ty), mask=there)


@triton.jit
def _attend_old(
    q_tile, k_tile, v_tile, seen, kv, table, begin, lowest, stop, page_stride, value_stride, slot_stride, scale_log2,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    """The running softmax over the keys begin .. stop, of which the first block is loaded already."""
    acc, row_max, row_sum = softmax_start(q_tile.shape[0], q_tile.shape[1])
    acc, row_max, row_sum = _attend_block(acc, row_max, row_sum, q_tile, k_tile, v_tile, seen, scale_log2)
    for first in tl.range(begin + BLOCK_N, stop, BLOCK_N):
        k_next, v_next, seen_next = _load_block(
            kv,
            table,
            first,
            lowest,
            stop,
            page_stride,
            value_stride,
            slot_stride,
            HEAD_DIM,
            DIM_PAD,
            BLOCK_N,
            PAGE_SIZE,
        )
        acc, row_max, row_sum = _attend_block(acc, row_max, row_sum, q_tile, k_next, v_next, seen_next, scale_log2)
    return acc, row_max, row_sum


@triton.jit
def _attend_new(acc, row_max, row_sum, q_tile, key, value, scale_log2):
    """The running softmax after the new token, [1, d]."""
    scores = tl.sum(q_tile.to(tl.float32) * key.to(tl.float32), 1)[:, None]
    weights, factor, row_max, row_sum = softmax_step(scores, row_max, row_sum, scale_log2, True)
    return acc * factor[:, None] + weights * value.to(tl.float32), row_max, row_sum


@triton.jit
def _write_new(kv, slot, key, value, dims, exists, page_stride, value_stride, slot_stride, PAGE_SIZE: tl.constexpr):
    """The new token's key and value, [1, d], to their slot of one KV head, unless that is negative."""
    place = kv + (slot // PAGE_SIZE).to(tl.int64) * page_stride + slot % PAGE_SIZE * slot_stride + dims
    tl.store(place, key.to(kv.dtype.element_ty), mask=exists & (slot >= 0))
    tl.store(place + value_stride, value.to(kv.dtype.element_ty), mask=exists & (slot >= 0))


@triton.jit
def _leave(
    out, partial, partial_lse, ticket, result, lse, split, num_used, held, packed, dims,
    RATIO: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Leave a split's result; whoever draws the last ticket joins them all."""
    tl.store(partial + (split * RATIO + packed) * HEAD_DIM + dims, result, mask=held)
    tl.store(partial_lse + split * RATIO + packed, lse[:, None], mask=packed < RATIO)
    tl.debug_barrier()  # every thread's part is written before the ticket is drawn
    if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == num_used - 1:
        _merge(out, partial, partial_lse, num_used, RATIO, HEAD_DIM, DIM_PAD, SPLITS)
        tl.store(ticket, 0)


@triton.jit(
    do_not_specialize=["table_stride", "num_rows", "window"],
    do_not_specialize_on_alignment=["positions", "slots", "query_start", "context_len", "block_table"],
)
def _rope_attention(
    out, partial, partial_lse, tickets, qkv, q_norm, k_norm, eps, positions, slots, inv_freq, kv, query_start,
    context_len, block_table, page_stride, value_stride, slot_stride, table_stride, num_rows, scale_log2, window,
    RATIO: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, SPLITS: tl.constexpr, HAS_NORM: tl.constexpr,
    WINDOWED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    WIDTH: tl.constexpr = RATIO * HEAD_DIM
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    inside = row < num_rows
    token = tl.load(query_start + row, mask=inside, other=0)
    has_query = tl.load(query_start + row + 1, mask=inside, other=0) > token
    context = tl.load(context_len + row, mask=inside, other=0)
    num_tokens = tl.load(query_start + num_rows)
    position, slot = tl.load(positions + token).to(tl.float32), tl.load(slots + token)
    lowest, begin, stop, num_used = _share(split, context, window, SPLITS, BLOCK_N, WINDOWED)
    table = block_table + row.to(tl.int64) * table_stride
    kv_here = kv + head * HEAD_DIM
    k_tile, v_tile, seen = _load_block(
        kv_here, table, begin, lowest, stop, page_stride, value_stride, slot_stride,
        HEAD_DIM, DIM_PAD, BLOCK_N, PAGE_SIZE,
    )  # fmt: skip
    dims, packed = tl.arange(0, DIM_PAD)[None, :], tl.arange(0, TILE_M)[:, None]
    held = (packed < RATIO) & (dims < HEAD_DIM)
    cos, sin, other = _rotation(position, inv_freq, dims, HEAD_DIM)
    q_gain, q_gain_other, k_gain, k_gain_other = _gains(q_norm, k_norm, dims, other, HEAD_DIM, HAS_NORM)
    if EARLY:
        tl.extra.cuda.gdc_wait()

    if (split == 0) & (row >= num_tokens):  # a token of padding
        where = out + (row.to(tl.int64) * KV_HEADS + head) * WIDTH + packed * HEAD_DIM + dims
        tl.store(where, tl.zeros([TILE_M, DIM_PAD], out.dtype.element_ty), mask=held)
    if has_query & (split < num_used):
        source = qkv + token.to(tl.int64) * ((RATIO + 2) * KV_HEADS * HEAD_DIM)
        one = tl.arange(0, 1)[:, None]
        exists = (one == 0) & (dims < HEAD_DIM)
        key_at = source + (KV_HEADS * RATIO + head) * HEAD_DIM + one
        key = _turn(key_at, k_gain, k_gain_other, cos, sin, eps, dims, other, exists, HEAD_DIM, HAS_NORM)
        value = tl.load(key_at + KV_HEADS * HEAD_DIM + dims, mask=exists, other=0.0)
        queries = source + (head * RATIO + packed) * HEAD_DIM
        q_tile = _turn(queries, q_gain, q_gain_other, cos, sin, eps, dims, other, held, HEAD_DIM, HAS_NORM)
        acc, row_max, row_sum = _attend_old(
            q_tile, k_tile, v_tile, seen, kv_here, table, begin, lowest, stop,
            page_stride, value_stride, slot_stride, scale_log2, HEAD_DIM, DIM_PAD, BLOCK_N, PAGE_SIZE,
        )  # fmt: skip
        if split == num_used - 1:
            _write_new(kv_here, slot, key, value, dims, exists, page_stride, value_stride, slot_stride, PAGE_SIZE)
            acc, row_max, row_sum = _attend_new(acc, row_max, row_sum, q_tile, key, value, scale_log2)
        result, lse = softmax_end(acc, row_max, row_sum)
        target = out + (token.to(tl.int64) * KV_HEADS + head) * WIDTH
        if num_used == 1:
            tl.store(target + packed * HEAD_DIM + dims, result.to(out.dtype.element_ty), mask=held)
        else:
            which = row * KV_HEADS + head
            _leave(
                target, partial + which * (SPLITS * WIDTH), partial_lse + which * (SPLITS * RATIO), tickets + which,
                result, lse, split, num_used, held, packed, dims, RATIO, HEAD_DIM, DIM_PAD, SPLITS,
            )  # fmt: skip


_launch = Launcher(_rope_attention)
