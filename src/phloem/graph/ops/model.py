"""The ops that model files are written in.

Shape suffixes: T tokens, C keys, D hidden, V vocabulary, N outputs and K inputs of a linear, H query heads, K KV heads,
d head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from phloem.graph.ops.contract import Example, Op, ShapeError, Spec, rank, same, static


# -- embed: the row of each token ------------------------------------------------------------------------------------
def _embed(token_ids_T: Tensor, weight_VD: Tensor) -> Tensor:
    return weight_VD[token_ids_T.long()].float()


def _embed_shape(token_ids: Spec, weight: Spec) -> Spec:
    (T,) = rank("token_ids", token_ids, 1)
    return Spec((T, rank("weight", weight, 2)[1]), "float32")


def _embed_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T in (1, 7):
        yield torch.randint(0, 40, (T,), generator=g, dtype=torch.int32), torch.randn(40, 64, generator=g)


embed = Op("embed", _embed, _embed_shape, _embed_examples)


# -- rms_norm: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization" ---------------------------------------
def normalize(x: Tensor, weight: Tensor, eps: float, out: torch.dtype) -> Tensor:
    """x / rms(x) * weight over the last dim, computed in float32."""
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()).to(out)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return normalize(x, weight, eps, weight.dtype)


def _rms_norm_shape(x: Spec, weight: Spec, eps: float) -> Spec:
    same("columns of x and weight", x.shape[-1], *rank("weight", weight, 1))
    return Spec(x.shape, "act")


def _rms_norm_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T, D in ((1, 64), (5, 96)):
        yield torch.randn(T, D, generator=g) * 3, torch.randn(D, generator=g).to(dtype), 1e-5


rms_norm = Op("rms_norm", _rms_norm, _rms_norm_shape, _rms_norm_examples)


# -- linear ----------------------------------------------------------------------------------------------------------
def _linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, float32_out: bool = False) -> Tensor:
    """x W^T + b, accumulated in float32; returned in x's type, or in float32 (logits)."""
    y_TN = F.linear(x_TK.float(), weight_NK.float(), None if bias_N is None else bias_N.float())
    return y_TN if float32_out else y_TN.to(x_TK.dtype)


def _linear_shape(x: Spec, weight: Spec, bias: Spec | None, float32_out: bool) -> Spec:
    T, K = rank("x", x, 2)
    N, columns = rank("weight", weight, 2)
    same("columns of x and weight", K, columns)
    if bias is not None:
        same("rows of weight and bias", N, *rank("bias", bias, 1))
    return Spec((T, N), "float32" if float32_out else x.dtype)


def _linear_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T, K, N, biased in ((1, 64, 32, False), (6, 64, 96, True)):
        bias = torch.randn(N, generator=g) if biased else None
        yield torch.randn(T, K, generator=g).to(dtype), torch.randn(N, K, generator=g).to(dtype), bias, not biased


linear = Op("linear", _linear, _linear_shape, _linear_examples)


# -- heads, columns: views -------------------------------------------------------------------------------------------
def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.reshape(x.shape[0], -1, head_dim)


def _heads_shape(x: Spec, head_dim: int) -> Spec:
    T, columns = rank("x", x, 2)
    num_heads, rest = divmod(static("columns of x", columns), head_dim)
    if rest:
        raise ShapeError(f"{columns} columns are not whole heads of {head_dim}")
    return Spec((T, num_heads, head_dim), x.dtype)


def _heads_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield torch.randn(3, 64, generator=g).to(dtype), 16


heads = Op("heads", _heads, _heads_shape, _heads_examples)


def _columns(x: Tensor, start: int, stop: int) -> Tensor:
    return x[:, start:stop]


def _columns_shape(x: Spec, start: int, stop: int) -> Spec:
    T, width = rank("x", x, 2)
    if not 0 <= start < stop <= static("columns of x", width):
        raise ShapeError(f"columns {start}:{stop} of {width}")
    return Spec((T, stop - start), x.dtype)


def _columns_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield torch.randn(3, 64, generator=g).to(dtype), 16, 48


columns = Op("columns", _columns, _columns_shape, _columns_examples)


# -- rope: Su et al. 2021, "RoFormer"; the half-split form of GPT-NeoX -----------------------------------------------
def rotate(x_THd: Tensor, positions_T: Tensor, inv_freq: Tensor) -> Tensor:
    """Rotate the pair (x[i], x[i + d/2]) of every head by the angle position * inv_freq[i]; in float32."""
    angles = positions_T.float()[:, None, None] * inv_freq.float()  # [T, 1, d/2]
    first, second = x_THd.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_THd.dtype)


def _rope_shape(x: Spec, positions: Spec, inv_freq: Spec) -> Spec:
    T, _, head_dim = rank("x", x, 3)
    same("tokens of x and positions", T, *rank("positions", positions, 1))
    same("head_dim and twice inv_freq", head_dim, 2 * static("inv_freq", *rank("inv_freq", inv_freq, 1)))
    return x


def frequencies(head_dim: int, theta: float = 1e4) -> Tensor:
    """theta^(-2i/d), float32 [d/2]."""
    return theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _rope_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    x = torch.randn(5, 3, 16, generator=g).to(dtype)
    yield x, torch.tensor([0, 1, 2, 77, 1000], dtype=torch.int32), frequencies(16)


rope = Op("rope", rotate, _rope_shape, _rope_examples)


# -- attention over one sequence: Vaswani et al. 2017; grouped queries: Ainslie et al. 2023 --------------------------
def attend(q_THd: Tensor, k_CKd: Tensor, v_CKd: Tensor, start: int, scale: float, window: int | None) -> Tensor:
    """Queries at positions start, start + 1 ... over keys at positions 0 .. C-1; [T, H * d].

    A query sees the keys up to its own position, and of those the last `window` where there is one. In float32.
    """
    T, H, _ = q_THd.shape
    C, K, _ = k_CKd.shape
    query_at = start + torch.arange(T, device=q_THd.device)[:, None]
    key_at = torch.arange(C, device=q_THd.device)[None, :]
    seen_TC = key_at <= query_at
    if window is not None:
        seen_TC &= key_at > query_at - window
    k_CHd, v_CHd = (x.float().repeat_interleave(H // K, dim=1) for x in (k_CKd, v_CKd))
    scores_HTC = torch.einsum("thd,chd->htc", q_THd.float(), k_CHd) * scale
    weights_HTC = scores_HTC.masked_fill(~seen_TC, float("-inf")).softmax(-1)
    return torch.einsum("htc,chd->thd", weights_HTC, v_CHd).reshape(T, -1).to(q_THd.dtype)


def _attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, scale: float, window: int | None = None) -> Tensor:
    return attend(q_THd, k_TKd, v_TKd, 0, scale, window)


def _attention_shape(q: Spec, k: Spec, v: Spec, scale: float, window: int | None) -> Spec:
    T, H, d = rank("q", q, 3)
    S, K, k_dim = rank("k", k, 3)
    same("tokens of q, k and v", T, S, rank("v", v, 3)[0])
    same("head_dim of q, k and v", d, k_dim, v.shape[2])
    same("heads of k and v", K, v.shape[1])
    if static("H", H) % static("K", K):
        raise ShapeError(f"{H} query heads do not share {K} KV heads evenly")
    return Spec((T, static("H", H) * static("d", d)), q.dtype)


def _attention_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T, H, K, window in ((1, 4, 4, None), (9, 4, 2, None), (9, 6, 2, 4)):
        q, k, v = (torch.randn(T, heads, 16, generator=g).to(dtype) for heads in (H, K, K))
        yield q, k, v, 0.25, window


attention = Op("attention", _attention, _attention_shape, _attention_examples)


# -- swiglu: Shazeer 2020, "GLU Variants Improve Transformer" --------------------------------------------------------
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, in float32."""
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def _swiglu_shape(gate: Spec, up: Spec) -> Spec:
    for a, b in zip(gate.shape, up.shape, strict=True):
        same("gate and up", a, b)
    return gate


def _swiglu_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield tuple(torch.randn(3, 64, generator=g).to(dtype) for _ in range(2))


swiglu = Op("swiglu", gated, _swiglu_shape, _swiglu_examples)
