# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""From the merged projection to rotated queries, and keys and values in their pages, in one launch.

A program takes HEADS_PER_PROGRAM heads of one token, whatever they are: query heads are normalized and rotated into the
result, key heads normalized and rotated into the cache, value heads copied there. RoPE: Su et al. 2021, "RoFormer", in
the half-split form of GPT-NeoX.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.fp8 import to_cache
from phloem.kernels.triton.launch import Launcher, follow, kind_of, starts_early

HEADS_PER_PROGRAM = 8
NUM_WARPS = 1


def rope_kv_write(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    positions: Tensor,
    slots: Tensor,
    inv_freq: Tensor,
    kv_cache: Tensor,
) -> Tensor:
    """q [T, H, d]; token t's key and value go to slot slots[t] = page * S + offset of kv_cache [P, 2, S, K, d].

    qkv [T, (H + 2K) d], rows may be strided; norms [d] or both None; positions and slots [T] int32; inv_freq [d / 2].
    A token of negative slot writes no key and no value.
    """
    num_tokens = qkv.shape[0]
    page_size, num_kv_heads, head_dim = kv_cache.shape[2:]
    num_heads = qkv.shape[1] // head_dim
    num_q_heads = num_heads - 2 * num_kv_heads
    q = torch.empty((num_tokens, num_q_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if not num_tokens:
        return q
    has_norm = q_norm is not None and k_norm is not None
    norms = (q_norm, k_norm) if has_norm else (inv_freq, inv_freq)
    early = starts_early(qkv.device)
    tensors = positions, slots, inv_freq, kv_cache, q
    _launch(
        (num_tokens, triton.cdiv(num_heads, HEADS_PER_PROGRAM), 1),
        qkv, qkv.stride(0), *norms, eps, *tensors, page_size,
        kind=kind_of(qkv, qkv.stride(0), *norms, *tensors, page_size),
        constants={
            "NUM_Q_HEADS": num_q_heads, "NUM_KV_HEADS": num_kv_heads, "HALF": head_dim // 2,
            "HALF_BLOCK": triton.next_power_of_2(head_dim // 2), "HEADS": HEADS_PER_PROGRAM, "HAS_NORM": has_norm,
            "EARLY": early,
        },
        num_warps=NUM_WARPS, early=early,
    )  # fmt: skip
    return q


@triton.jit
def _rope_kv_write(
    qkv,
    qkv_stride,
    q_norm,
    k_norm,
    eps,
    positions,
    slots,
    inv_freq,
    kv_cache,
    q,
    page_size,
    NUM_Q_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EARLY: tl.constexpr,
):
    follow(EARLY)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    exists = (head < NUM_Q_HEADS + 2 * NUM_KV_HEADS) & (column < HALF)
    is_query, is_value = head < NUM_Q_HEADS, head >= NUM_Q_HEADS + NUM_KV_HEADS

    # What nobody computes is asked for first: a program waits for all its loads at once.
    frequency = tl.load(inv_freq + column, mask=column < HALF, other=0.0)
    position, slot = tl.load(positions + token).to(tl.float32), tl.load(slots + token)
    gain_first, gain_second = frequency, frequency
    if HAS_NORM:
        gain_first = _gain(q_norm, k_norm, column, is_query, HALF)
        gain_second = _gain(q_norm + HALF, k_norm + HALF, column, is_query, HALF)
    source = qkv + token * qkv_stride + head * (2 * HALF) + column
    first = tl.load(source, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=exists, other=0.0).to(tl.float32)
    turned_first, turned_second = first, second
    if HAS_NORM:
        mean = tl.sum(first * first + second * second, axis=1)[:, None] / (2 * HALF)
        scale = tl.rsqrt(mean + eps)
        # The reference rounds what it has normalized to the activation type before it rotates.
        turned_first = (first * scale * gain_first).to(q.dtype.element_ty).to(tl.float32)
        turned_second = (second * scale * gain_second).to(q.dtype.element_ty).to(tl.float32)
    cos, sin = tl.cos(position * frequency), tl.sin(position * frequency)
    rotated_first = turned_first * cos - turned_second * sin
    rotated_second = turned_second * cos + turned_first * sin

    target = q + (token * NUM_Q_HEADS + head) * (2 * HALF) + column
    tl.store(target, rotated_first.to(q.dtype.element_ty), mask=exists & is_query)
    tl.store(target + HALF, rotated_second.to(q.dtype.element_ty), mask=exists & is_query)

    page, offset = (slot // page_size).to(tl.int64), slot % page_size
    kv_head = head - NUM_Q_HEADS - tl.where(is_value, NUM_KV_HEADS, 0)
    line = ((page * 2 + is_value.to(tl.int64)) * page_size + offset) * NUM_KV_HEADS + kv_head
    place = kv_cache + line * (2 * HALF) + column
    writes = exists & (head >= NUM_Q_HEADS) & (slot >= 0)
    stored_first, stored_second = tl.where(is_value, first, rotated_first), tl.where(is_value, second, rotated_second)
    tl.store(place, to_cache(stored_first, kv_cache.dtype.element_ty), mask=writes)
    tl.store(place + HALF, to_cache(stored_second, kv_cache.dtype.element_ty), mask=writes)


@triton.jit
def _gain(q_norm, k_norm, column, is_query, HALF: tl.constexpr):
    """The norm's weights for each head of the tile, [HEADS, HALF_BLOCK]."""
    of_query = tl.load(q_norm + column, mask=column < HALF, other=0.0).to(tl.float32)
    of_key = tl.load(k_norm + column, mask=column < HALF, other=0.0).to(tl.float32)
    return tl.where(is_query, of_query, of_key)


_launch = Launcher(_rope_kv_write)
