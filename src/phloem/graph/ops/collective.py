"""The ops that a rank's graph talks to its neighbours with. Only the shard and split_stages passes make them.

Their references are what they mean on an axis of size one; lowering binds them to the process's `parallel.comm.Comm`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from phloem.graph.ops.contract import Example, Op, Spec, rank, same, static


# -- all_reduce: the sum over an axis, on every rank of it -----------------------------------------------------------
def _all_reduce(x: Tensor, axis: str) -> Tensor:
    return x


def _all_reduce_shape(x: Spec, axis: str) -> Spec:
    return x


def _all_reduce_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield torch.randn(3, 64, generator=g).to(dtype), "tensor"


all_reduce = Op("all_reduce", _all_reduce, _all_reduce_shape, _all_reduce_examples)


# -- all_gather: the columns of every rank of an axis, side by side ---------------------------------------------------
def _all_gather(x: Tensor, axis: str, widths: tuple[int, ...]) -> Tensor:
    assert len(widths) == 1, "only an axis of size one gathers by itself"
    return x


def _all_gather_shape(x: Spec, axis: str, widths: tuple[int, ...]) -> Spec:
    L, width = rank("x", x, 2)
    if width not in widths:
        same("columns of x and one of widths", width, *widths)
    return Spec((L, sum(widths)), x.dtype)


def _all_gather_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield torch.randn(2, 96, generator=g).to(dtype), "tensor", (96,)


all_gather = Op("all_gather", _all_gather, _all_gather_shape, _all_gather_examples)


# -- local_ids, owned_rows: an embedding of which this rank holds the rows start .. stop - 1 -------------------------
def _local_ids(token_ids_T: Tensor, start: int, stop: int) -> Tensor:
    """Tokens as rows of the part; those of other ranks read its first row, which owned_rows then drops."""
    inside_T = (token_ids_T >= start) & (token_ids_T < stop)
    return torch.where(inside_T, token_ids_T - start, torch.zeros_like(token_ids_T))


def _local_ids_shape(token_ids: Spec, start: int, stop: int) -> Spec:
    rank("token_ids", token_ids, 1)
    return token_ids


def _local_ids_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield torch.randint(0, 40, (9,), generator=g, dtype=torch.int32), 10, 30


local_ids = Op("local_ids", _local_ids, _local_ids_shape, _local_ids_examples)


def _owned_rows(x_TD: Tensor, token_ids_T: Tensor, start: int, stop: int) -> Tensor:
    """x where the token is one of start .. stop - 1, else zero."""
    inside_T = (token_ids_T >= start) & (token_ids_T < stop)
    return x_TD * inside_T[:, None].to(x_TD.dtype)


def _owned_rows_shape(x: Spec, token_ids: Spec, start: int, stop: int) -> Spec:
    T, D = rank("x", x, 2)
    same("rows of x and tokens", T, *rank("token_ids", token_ids, 1))
    static("columns of x", D)
    return x


def _owned_rows_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield torch.randn(5, 64, generator=g), torch.randint(0, 40, (5,), generator=g, dtype=torch.int32), 10, 30


owned_rows = Op("owned_rows", _owned_rows, _owned_rows_shape, _owned_rows_examples)


# -- receive, send: the residual stream between the stages of a pipeline ---------------------------------------------
def _receive(token_ids_T: Tensor, width: int, axis: str) -> tuple[Tensor, Tensor]:
    """From the stage before: what its last layer added, and the stream to add it to. Alone: zeros."""
    shape = (token_ids_T.shape[0], width)
    return torch.zeros(shape, device=token_ids_T.device), torch.zeros(shape, device=token_ids_T.device)


def _receive_shape(token_ids: Spec, width: int, axis: str) -> tuple[Spec, Spec]:
    (T,) = rank("token_ids", token_ids, 1)
    return Spec((T, width), "act"), Spec((T, width), "float32")


def _receive_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield torch.randint(0, 40, (5,), generator=g, dtype=torch.int32), 64, "pipe"


receive = Op("receive", _receive, _receive_shape, _receive_examples)


def _send(x_TD: Tensor, residual_TD: Tensor, axis: str) -> Tensor:
    """To the stage after. Returns the residual stream: the output of a stage that makes no logits."""
    return residual_TD


def _send_shape(x: Spec, residual: Spec, axis: str) -> Spec:
    same("rows of x and residual", rank("x", x, 2)[0], rank("residual", residual, 2)[0])
    same("columns of x and residual", x.shape[1], residual.shape[1])
    return residual


def _send_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    yield torch.randn(5, 64, generator=g).to(dtype), torch.randn(5, 64, generator=g), "pipe"


send = Op("send", _send, _send_shape, _send_examples)
