"""Matrix products: cuBLAS through torch, the only library the fast path leans on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, float32_out: bool = False) -> Tensor:
    """x W^T + b, accumulated in float32; in x's type, or in float32 without rounding in between (logits).

    x [T, K] and weight [N, K] of one type; bias [N].
    """
    if not float32_out:
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    y = _product_in_float32(x, weight)
    return y if bias is None else y + bias


def _product_in_float32(x: Tensor, weight: Tensor) -> Tensor:
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return F.linear(x.float(), weight.float())
