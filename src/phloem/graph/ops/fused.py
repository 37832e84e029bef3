"""The ops of steps of a row or two on a device, where launches cost as much as work: lowered ops with their neighbours.

What each computes is said by the ops it replaces. Shape suffixes as in lowered.py; N outputs and K inputs of a linear.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from phloem.graph.ops.contract import Example, Op, ShapeError, Spec, rank, same, static
from phloem.graph.ops.lowered import paged_attention, rope_kv_write, silu_mul
from phloem.graph.ops.model import frequencies, linear, normalize


# -- norm_linear: rms_norm, linear -----------------------------------------------------------------------------------
def _norm_linear(x_TK: Tensor, norm_K: Tensor, eps: float, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """[T, N] in weight's type, of the residual stream x in float32."""
    normed: Tensor = linear(normalize(x_TK, norm_K, eps, weight_NK.dtype), weight_NK, bias_N)
    return normed


def _norm_linear_shape(x: Spec, norm: Spec, eps: float, weight: Spec, bias: Spec | None) -> Spec:
    T, K = rank("x", x, 2)
    N, columns = rank("weight", weight, 2)
    same("columns of x, norm and weight", K, columns, *rank("norm", norm, 1))
    if x.dtype != "float32":
        raise ShapeError(f"the residual stream is {x.dtype}, expected float32")
    if bias is not None:
        same("rows of weight and bias", N, *rank("bias", bias, 1))
    return Spec((T, N))


def _norm_linear_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T, K, N, biased in ((1, 64, 32, False), (2, 96, 40, True)):
        weight = (torch.randn(N, K, generator=g) / K**0.5).to(dtype)
        bias = torch.randn(N, generator=g) if biased else None
        yield torch.randn(T, K, generator=g) * 3, torch.randn(K, generator=g).to(dtype), 1e-5, weight, bias


norm_linear = Op("norm_linear", _norm_linear, _norm_linear_shape, _norm_linear_examples)


# -- norm_gated_linear: rms_norm, linear, silu_mul -------------------------------------------------------------------
def _norm_gated_linear(x_TK: Tensor, norm_K: Tensor, eps: float, weight_2FK: Tensor) -> Tensor:
    """[T, F] in weight's type; the weight's first F rows are the gate, the others up."""
    gated: Tensor = silu_mul(_norm_linear(x_TK, norm_K, eps, weight_2FK, None))
    return gated


def _norm_gated_linear_shape(x: Spec, norm: Spec, eps: float, weight: Spec) -> Spec:
    T, width = _norm_linear_shape(x, norm, eps, weight, None).shape
    if static("rows of weight", width) % 2:
        raise ShapeError(f"{width} rows have no halves")
    return Spec((T, static("rows of weight", width) // 2))


def _norm_gated_linear_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T, K, F in ((1, 64, 32), (2, 96, 40)):
        weight = (torch.randn(2 * F, K, generator=g) / K**0.5).to(dtype)
        yield torch.randn(T, K, generator=g) * 3, torch.randn(K, generator=g).to(dtype), 1e-5, weight


norm_gated_linear = Op("norm_gated_linear", _norm_gated_linear, _norm_gated_linear_shape, _norm_gated_linear_examples)


# -- linear_add: linear, the residual stream takes its result --------------------------------------------------------
def _linear_add(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, residual_TN: Tensor) -> Tensor:
    """residual + linear(x) in float32."""
    added: Tensor = residual_TN + linear(x_TK, weight_NK, bias_N, True)
    return added


def _linear_add_shape(x: Spec, weight: Spec, bias: Spec | None, residual: Spec) -> Spec:
    T, N = linear.shape(x, weight, bias, True).shape  # type: ignore[union-attr]
    same("tokens of x and residual", T, rank("residual", residual, 2)[0])
    same("rows of weight and columns of residual", N, residual.shape[1])
    if residual.dtype != "float32":
        raise ShapeError(f"the residual is {residual.dtype}, expected float32")
    return residual


def _linear_add_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for x, weight, bias, _ in linear.examples(g, dtype):
        yield x, weight, bias, torch.randn(x.shape[0], weight.shape[0], generator=g) * 3


linear_add = Op("linear_add", _linear_add, _linear_add_shape, _linear_add_examples)


# -- rope_attention: rope_kv_write, paged_attention; every row has at most one query ---------------------------------
def _rope_attention(
    qkv: Tensor,
    q_norm_d: Tensor | None,
    k_norm_d: Tensor | None,
    eps: float,
    positions_T: Tensor,
    slots_T: Tensor,
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
) -> Tensor:
    """[T, H * d]: each row's new token is written to the cache, then attends it and all before."""
    q_THd = rope_kv_write(qkv, q_norm_d, k_norm_d, eps, positions_T, slots_T, inv_freq, kv_cache)
    meta = (query_start, context_len, block_table, shared_start, shared_rows, shared_pages)
    out: Tensor = paged_attention(q_THd, kv_cache, *meta, scale, window)
    return out


def _rope_attention_shape(
    qkv: Spec,
    q_norm: Spec | None,
    k_norm: Spec | None,
    eps: float,
    positions: Spec,
    slots: Spec,
    inv_freq: Spec,
    kv_cache: Spec,
    query_start: Spec,
    context_len: Spec,
    block_table: Spec,
    shared_start: Spec,
    shared_rows: Spec,
    shared_pages: Spec,
    scale: float,
    window: int | None,
) -> Spec:
    q = rope_kv_write.shape(qkv, q_norm, k_norm, eps, positions, slots, inv_freq, kv_cache)
    meta = (query_start, context_len, block_table, shared_start, shared_rows, shared_pages)
    out = paged_attention.shape(q, kv_cache, *meta, scale, window)
    assert isinstance(out, Spec)
    return out


def _rope_attention_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    """Rows of a whole page and a part, of one token, and of many; pages of 32 tokens."""
    context_len = torch.tensor([43, 1, 96], dtype=torch.int32)
    block_table = torch.tensor([[2, 0, 0], [5, 0, 0], [1, 4, 3]], dtype=torch.int32)
    positions = context_len - 1
    slots = torch.tensor([0 * 32 + 10, 5 * 32, 3 * 32 + 31], dtype=torch.int32)
    query_start = torch.arange(4, dtype=torch.int32)
    no_groups = [torch.zeros(size, dtype=torch.int32) for size in (1, 0, 0)]
    for H, K, d, normed, window in ((4, 4, 16, False, None), (6, 2, 16, True, None), (6, 2, 32, True, 20)):
        norms = torch.randn(2, d, generator=g) if normed else (None, None)
        qkv = torch.randn(3, (H + 2 * K) * d, generator=g).to(dtype)
        cache = torch.randn(6, 2, 32, K, d, generator=g).to(dtype)
        meta = (query_start, context_len, block_table, *no_groups)
        yield qkv, *norms, 1e-6, positions, slots, frequencies(d), cache, *meta, d**-0.5, window


rope_attention = Op("rope_attention", _rope_attention, _rope_attention_shape, _rope_attention_examples)
