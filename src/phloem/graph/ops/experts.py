"""Mixture of experts: Shazeer et al. 2017; top-k routing of token-choice as in Mixtral (Jiang et al. 2024).

Shape suffixes as in model.py; E experts, F the width of one, k experts a token. The weights of all experts are one
matrix each, expert after expert: gate_up `[E * 2F, D]` (an expert's gate, then its up), down `[E * D, F]`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from phloem.graph.ops.contract import Example, Op, ShapeError, Spec, rank, same, static


def route(router_TE: Tensor, top_k: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """Each token's experts, int64 [T, k], and their weights, float32 [T, k]: softmax over all, the k largest of it,
    made to sum to one with `normalize`."""
    weights_Tk, experts_Tk = router_TE.float().softmax(-1).topk(top_k, dim=-1)
    if normalize:
        weights_Tk = weights_Tk / weights_Tk.sum(-1, keepdim=True)
    return experts_Tk, weights_Tk


def expert_rows(x_ND: Tensor, expert_N: Tensor, gate_up: Tensor, down: Tensor, num_experts: int) -> Tensor:
    """Row n through expert `expert_N[n]` of these weights: down(silu(gate(x)) * up(x)), float32 [N, D].

    One pair of matrix products for each expert that has rows (a grouped matmul)."""
    out_ND = torch.zeros(x_ND.shape[0], x_ND.shape[1], dtype=torch.float32, device=x_ND.device)
    gate_up_E2FD = gate_up.view(num_experts, -1, gate_up.shape[1])
    down_EDF = down.view(num_experts, -1, down.shape[1])
    order_N = expert_N.argsort(stable=True)
    counts = torch.bincount(expert_N, minlength=num_experts).tolist()
    start = 0
    for expert, count in enumerate(counts):
        rows = order_N[start : start + count]
        start += count
        if count:
            gate, up = F.linear(x_ND[rows], gate_up_E2FD[expert]).float().chunk(2, dim=-1)
            hidden = (F.silu(gate) * up).to(x_ND.dtype)
            out_ND[rows] = F.linear(hidden, down_EDF[expert]).float()
    return out_ND


# -- moe: the whole layer, of which this process may hold the experts first .. first + E_local - 1 -------------------
def _moe(
    x_TD: Tensor, router_TE: Tensor, gate_up: Tensor, down: Tensor, top_k: int, normalize: bool, first: int = 0
) -> Tensor:
    """The weighted sum of each token's experts; those held elsewhere add nothing. In x's type."""
    num_local = down.shape[0] // x_TD.shape[1]
    experts_Tk, weights_Tk = route(router_TE, top_k, normalize)
    token_N, slot_N = ((experts_Tk >= first) & (experts_Tk < first + num_local)).nonzero(as_tuple=True)
    rows_ND = expert_rows(x_TD[token_N], experts_Tk[token_N, slot_N] - first, gate_up, down, num_local)
    out_TD = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    out_TD.index_add_(0, token_N, rows_ND * weights_Tk[token_N, slot_N, None])
    return out_TD.to(x_TD.dtype)


def _moe_shape(x: Spec, router: Spec, gate_up: Spec, down: Spec, top_k: int, normalize: bool, first: int) -> Spec:
    T, D = rank("x", x, 2)
    tokens, E = rank("router", router, 2)
    same("tokens of x and router", T, tokens)
    same("columns of x and gate_up", D, rank("gate_up", gate_up, 2)[1])
    down_rows, width = rank("down", down, 2)
    num_local, rest = divmod(static("rows of down", down_rows), static("columns of x", D))
    if rest or static("rows of gate_up", gate_up.shape[0]) != num_local * 2 * static("columns of down", width):
        raise ShapeError(f"gate_up {gate_up} and down {down} are not of the same experts")
    if not 0 < top_k <= static("experts", E) or first + num_local > static("experts", E):
        raise ShapeError(f"{top_k} of {E} experts, of which {first} .. {first + num_local - 1} are here")
    return x


def _moe_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T, E, top_k, normalize, first, local in ((1, 4, 2, True, 0, 4), (9, 8, 3, False, 0, 8), (9, 8, 2, True, 4, 4)):
        x, router = torch.randn(T, 32, generator=g).to(dtype), torch.randn(T, E, generator=g)
        gate_up = (torch.randn(local * 48, 32, generator=g) * 0.2).to(dtype)
        down = (torch.randn(local * 32, 24, generator=g) * 0.2).to(dtype)
        yield x, router, gate_up, down, top_k, normalize, first


moe = Op("moe", _moe, _moe_shape, _moe_examples)


# -- moe_exchange: the same over ranks that hold whole experts -------------------------------------------------------
def _moe_exchange(
    x_TD: Tensor, router_TE: Tensor, gate_up: Tensor, down: Tensor, top_k: int, normalize: bool, axis: str
) -> Tensor:
    """On an axis of size one: moe. Lowering binds it to `lower.expert_parallel`."""
    return _moe(x_TD, router_TE, gate_up, down, top_k, normalize)


def _moe_exchange_shape(
    x: Spec, router: Spec, gate_up: Spec, down: Spec, top_k: int, normalize: bool, axis: str
) -> Spec:
    return _moe_shape(x, router, gate_up, down, top_k, normalize, 0)


def _moe_exchange_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for *args, first in _moe_examples(g, dtype):
        if first == 0:
            yield *args, "tensor"


moe_exchange = Op("moe_exchange", _moe_exchange, _moe_exchange_shape, _moe_exchange_examples)
