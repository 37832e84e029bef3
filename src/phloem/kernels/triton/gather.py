# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Rows of a table by index: token embeddings, and the tokens whose logits are wanted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
NUM_WARPS = 4


def embed(token_ids: Tensor, weight: Tensor) -> Tensor:
    """weight[token_ids] in float32: [T] int32, [V, D] -> [T, D]."""
    return _gather(weight, token_ids, torch.float32)


def select_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index]: [T, D], [L] int32 -> [L, D]; x's rows may be strided."""
    return _gather(x, index, x.dtype)


def _gather(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    num_columns = table.shape[1]
    out = torch.empty((len(index), num_columns), dtype=dtype, device=table.device)
    if len(index):
        grid = (len(index), triton.cdiv(num_columns, BLOCK))
        _gather_rows[grid](table, table.stride(0), index, out, num_columns, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return out


@triton.jit
def _gather_rows(table, stride, index, out, num_columns, BLOCK: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    row = tl.load(index + line).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < num_columns
    value = tl.load(table + row * stride + column, mask=exists, other=0.0)
    tl.store(out + line * num_columns + column, value.to(out.dtype.element_ty), mask=exists)
