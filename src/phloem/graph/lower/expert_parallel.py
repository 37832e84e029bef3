"""Experts spread over ranks: each rank routes its share of the tokens, and rows travel to their experts and back.

my tokens --route--> (token, expert) pairs, sorted by owner
          --all_to_all--> rows at their experts' rank --grouped matmul--> --all_to_all--> weighted sums
          --all_gather--> every token's sum on every rank
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from phloem.graph.ops.experts import expert_rows, route
from phloem.parallel.layout import even


class Exchange(Protocol):
    """What of `parallel.comm.Comm` this needs."""

    def all_to_all(self, x: Tensor, send_counts: list[int], axis: str) -> tuple[Tensor, list[int]]:
        """Rows to each rank of the axis, in its order; the rows that came, and how many from each."""

    def gather_rows(self, x: Tensor, counts: list[int], axis: str) -> Tensor:
        """The rows of every rank below each other; `counts` of each."""

    def size_and_index(self, axis: str) -> tuple[int, int]:
        """How many ranks the axis has, and which this one is."""


def exchange_experts(
    x_TD: Tensor,
    router_TE: Tensor,
    gate_up: Tensor,
    down: Tensor,
    top_k: int,
    normalize: bool,
    axis: str,
    *,
    exchange: Exchange,
) -> Tensor:
    """The op `moe_exchange` on one rank: x and router are the same everywhere, the weights are this rank's experts'."""
    size, index = exchange.size_and_index(axis)
    num_experts = router_TE.shape[1]
    shares = [even(x_TD.shape[0], size, each) for each in range(size)]
    mine = slice(shares[index].start, shares[index].stop)
    x, num_local = x_TD[mine], down.shape[0] // x_TD.shape[1]
    experts_Tk, weights_Tk = route(router_TE[mine], top_k, normalize)
    owners = [even(num_experts, size, each) for each in range(size)]
    order_N = experts_Tk.reshape(-1).argsort(stable=True)  # by expert, so by owner
    expert_N, token_N = experts_Tk.reshape(-1)[order_N], order_N // top_k
    counts = [int(((expert_N >= owner.start) & (expert_N < owner.stop)).sum()) for owner in owners]
    rows, came = exchange.all_to_all(x[token_N].contiguous(), counts, axis)
    experts, _ = exchange.all_to_all(expert_N[:, None].contiguous(), counts, axis)
    done = expert_rows(rows, experts[:, 0] - owners[index].start, gate_up, down, num_local)
    back, _ = exchange.all_to_all(done, came, axis)
    sums = torch.zeros(x.shape, dtype=torch.float32).index_add_(
        0, token_N, back * weights_Tk.reshape(-1)[order_N, None]
    )
    return exchange.gather_rows(sums.to(x_TD.dtype), [len(share) for share in shares], axis)
