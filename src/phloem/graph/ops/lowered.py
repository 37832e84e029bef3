"""The ops that a lowered step is made of, besides embed, rms_norm and linear. Kernels implement them by these names.

Shape suffixes: T tokens of the step, R rows (sequences), L rows that want logits, D hidden, F feed-forward,
H query heads, K KV heads, d head_dim, P pages, S tokens a page.

The references use the plain KV layout [P, 2, S, K, d]: keys at [:, 0], values at [:, 1]. Kernels are free to lay their
pages out differently; the pool and the two ops that touch a cache must only agree.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from phloem.graph.ops.contract import Example, Op, ShapeError, Spec, rank, same, static
from phloem.graph.ops.fp8 import to_cache
from phloem.graph.ops.model import attend, frequencies, gated, normalize, rotate


# -- add_rms_norm: the residual stream takes a block's output and is normalized for the next -------------------------
def _add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normalized in x's type, new residual in float32)."""
    residual_TD = residual_TD + x_TD.float()
    return normalize(residual_TD, weight_D, eps, x_TD.dtype), residual_TD


def _add_rms_norm_shape(x: Spec, residual: Spec, weight: Spec, eps: float) -> tuple[Spec, Spec]:
    T, D = rank("x", x, 2)
    same("tokens of x and residual", T, rank("residual", residual, 2)[0])
    same("columns of x, residual and weight", D, residual.shape[1], *rank("weight", weight, 1))
    if residual.dtype != "float32":
        raise ShapeError(f"the residual is {residual.dtype}, expected float32")
    return Spec((T, D), "act"), Spec((T, D), "float32")


def _add_rms_norm_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T, D in ((1, 64), (5, 96)):
        x, residual = torch.randn(T, D, generator=g).to(dtype), torch.randn(T, D, generator=g) * 3
        yield x, residual, torch.randn(D, generator=g), 1e-5


add_rms_norm = Op("add_rms_norm", _add_rms_norm, _add_rms_norm_shape, _add_rms_norm_examples)


# -- rope_kv_write: from the merged projection to rotated queries, and keys and values in their pages ----------------
def _rope_kv_write(
    qkv: Tensor,
    q_norm_d: Tensor | None,
    k_norm_d: Tensor | None,
    eps: float,
    positions_T: Tensor,
    slots_T: Tensor,
    inv_freq: Tensor,
    kv_cache: Tensor,
) -> Tensor:
    """q [T, H, d]; token t's key and value go to slot slots_T[t] = page * S + offset of `kv_cache` [P, 2, S, K, d].

    qkv [T, (H + 2K) d]; H follows from its width. q and k are RMS-normalized per head first where norms are given. The
    cache may hold 8-bit floats.
    """
    S, K, d = kv_cache.shape[2:]
    qkv = qkv.reshape(qkv.shape[0], -1, d)
    q_THd, k_TKd, v_TKd = torch.split(qkv, [qkv.shape[1] - 2 * K, K, K], dim=1)
    if q_norm_d is not None and k_norm_d is not None:
        q_THd = normalize(q_THd, q_norm_d, eps, qkv.dtype)
        k_TKd = normalize(k_TKd, k_norm_d, eps, qkv.dtype)
    page_T, offset_T = slots_T.long() // S, slots_T.long() % S
    kv_cache[page_T, 0, offset_T] = to_cache(rotate(k_TKd, positions_T, inv_freq), kv_cache.dtype)
    kv_cache[page_T, 1, offset_T] = to_cache(v_TKd, kv_cache.dtype)
    return rotate(q_THd, positions_T, inv_freq)


def _rope_kv_write_shape(
    qkv: Spec,
    q_norm: Spec | None,
    k_norm: Spec | None,
    eps: float,
    positions: Spec,
    slots: Spec,
    inv_freq: Spec,
    kv_cache: Spec,
) -> Spec:
    T, width = rank("qkv", qkv, 2)
    _, two, _, K, d = rank("kv_cache", kv_cache, 5)
    same("keys and values of kv_cache", two, 2)
    same("tokens of qkv, positions and slots", T, *rank("positions", positions, 1), *rank("slots", slots, 1))
    same("head_dim and twice inv_freq", d, 2 * static("inv_freq", *rank("inv_freq", inv_freq, 1)))
    if (q_norm is None) != (k_norm is None):
        raise ShapeError("q_norm and k_norm come together or not at all")
    if q_norm is not None and k_norm is not None:
        same("head_dim, q_norm and k_norm", d, *q_norm.shape, *k_norm.shape)
    heads, rest = divmod(static("columns of qkv", width), static("d", d))
    num_q_heads = heads - 2 * static("K", K)
    if rest or num_q_heads < 1:
        raise ShapeError(f"{width} columns are not query heads and {K} + {K} KV heads of {d}")
    return Spec((T, num_q_heads, d), qkv.dtype)


def _rope_kv_write_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for H, K, d, normed in ((4, 2, 16, False), (2, 2, 32, True)):
        norms = torch.randn(2, d, generator=g) if normed else (None, None)
        qkv = torch.randn(5, (H + 2 * K) * d, generator=g).to(dtype)
        positions, slots = torch.tensor([[3, 4, 5, 0, 70], [7, 8, 33, 64, 2]], dtype=torch.int32)
        yield qkv, *norms, 1e-6, positions, slots, frequencies(d), torch.zeros(3, 2, 32, K, d, dtype=dtype)


rope_kv_write = Op("rope_kv_write", _rope_kv_write, _rope_kv_write_shape, _rope_kv_write_examples)


# -- paged_attention: Kwon et al. 2023, "Efficient Memory Management ... with PagedAttention" ------------------------
def _paged_attention(
    q_THd: Tensor,
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
    """[T, H * d]: each row's queries over that row's pages.

    Row r owns the queries query_start[r] .. query_start[r+1]; its context is context_len[r] tokens long, those queries
    being the last of them, in the pages block_table[r]. Group g says that the rows shared_rows[shared_start[g] ..
    shared_start[g+1]] have their first shared_pages[g] pages in common: a hint to read those once, which changes no
    result and which this reference ignores.
    """
    S, d = kv_cache.shape[2], q_THd.shape[2]
    out = q_THd.new_zeros(q_THd.shape[0], q_THd.shape[1] * d)
    for row, num_tokens in enumerate(context_len.tolist()):
        start, stop = int(query_start[row]), int(query_start[row + 1])
        if start == stop:
            continue
        pages = block_table[row, : -(-num_tokens // S)].long()
        keys, values = (kv_cache[pages, i].flatten(0, 1)[:num_tokens] for i in (0, 1))
        out[start:stop] = attend(q_THd[start:stop], keys, values, num_tokens - (stop - start), scale, window)
    return out


def _paged_attention_shape(
    q: Spec,
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
    T, H, d = rank("q", q, 3)
    *_, K, cache_dim = rank("kv_cache", kv_cache, 5)
    same("head_dim of q and kv_cache", d, cache_dim)
    (R,) = rank("context_len", context_len, 1)
    same("rows of context_len and block_table", R, rank("block_table", block_table, 2)[0])
    if static("H", H) % static("K", K):
        raise ShapeError(f"{H} query heads do not share {K} KV heads evenly")
    return Spec((T, static("H", H) * static("d", d)), q.dtype)


def _paged_attention_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    """A decode row, a chunk in the middle of a prompt and a whole prompt; two rows share their first page."""
    query_start, context_len = torch.tensor([0, 1, 4, 9]), torch.tensor([43, 38, 5])
    block_table = torch.tensor([[2, 0, 0], [2, 5, 0], [1, 0, 0]])
    groups = torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([1])
    meta = [x.int() for x in (query_start, context_len, block_table, *groups)]
    for H, K, window in ((4, 4, None), (6, 2, None), (6, 2, 20)):
        cache = torch.randn(6, 2, 32, K, 16, generator=g).to(dtype)
        yield torch.randn(9, H, 16, generator=g).to(dtype), cache, *meta, 0.25, window


paged_attention = Op("paged_attention", _paged_attention, _paged_attention_shape, _paged_attention_examples)


# -- silu_mul: swiglu on the merged projection -----------------------------------------------------------------------
def _silu_mul(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of the columns: [T, 2F] -> [T, F]."""
    return gated(*gate_up.chunk(2, dim=-1))


def _silu_mul_shape(gate_up: Spec) -> Spec:
    T, width = rank("gate_up", gate_up, 2)
    if static("columns", width) % 2:
        raise ShapeError(f"{width} columns have no halves")
    return Spec((T, static("columns", width) // 2), gate_up.dtype)


def _silu_mul_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T in (1, 5):
        yield (torch.randn(T, 128, generator=g).to(dtype),)


silu_mul = Op("silu_mul", _silu_mul, _silu_mul_shape, _silu_mul_examples)


# -- select_rows: only the tokens whose logits are wanted go on ------------------------------------------------------
def _select_rows(x_TD: Tensor, index_L: Tensor) -> Tensor:
    return x_TD[index_L.long()]


def _select_rows_shape(x: Spec, index: Spec) -> Spec:
    return Spec((*rank("index", index, 1), rank("x", x, 2)[1]), x.dtype)


def _select_rows_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for index in ([], [4], [0, 2, 2]):
        yield torch.randn(5, 64, generator=g).to(dtype), torch.tensor(index, dtype=torch.int32)


select_rows = Op("select_rows", _select_rows, _select_rows_shape, _select_rows_examples)
