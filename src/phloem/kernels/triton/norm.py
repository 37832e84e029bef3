# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""RMSNorm, alone and fused with the residual stream. One program a row: the row stays in registers.

Zhang and Sennrich 2019, "Root Mean Square Layer Normalization". Sums are float32, in an order that depends on the
number of columns only, so a row's result does not depend on its batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.launch import Launcher, follow, kind_of, starts_early

COLUMNS_PER_WARP = 512  # 16 numbers a thread: two 16-byte loads of bfloat16, four of float32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dim, in weight's type. x [..., D], its last dim contiguous; weight [D]."""
    rows = x.reshape(-1, x.shape[-1])
    y = torch.empty(rows.shape, dtype=weight.dtype, device=x.device)
    if len(rows):
        block, num_warps = _block(rows.shape[1])
        arguments = rows, rows.stride(0), weight, y, rows.shape[1]
        early = starts_early(x.device)
        _launch_norm(
            (len(rows), 1, 1), *arguments, eps, kind=kind_of(*arguments), constants={"BLOCK": block, "EARLY": early},
            num_warps=num_warps, early=early,
        )  # fmt: skip
    return y.view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(residual + x) in x's type, residual + x in float32). x and residual [T, D], weight [D]."""
    num_rows, num_columns = x.shape
    y = torch.empty((num_rows, num_columns), dtype=x.dtype, device=x.device)
    new_residual = torch.empty((num_rows, num_columns), dtype=torch.float32, device=x.device)
    if num_rows:
        block, num_warps = _block(num_columns)
        arguments = x, x.stride(0), residual, residual.stride(0), weight, y, new_residual, num_columns
        early = starts_early(x.device)
        _launch_add_norm(
            (num_rows, 1, 1), *arguments, eps, kind=kind_of(*arguments), constants={"BLOCK": block, "EARLY": early},
            num_warps=num_warps, early=early,
        )  # fmt: skip
    return y, new_residual


def _block(num_columns: int) -> tuple[int, int]:
    """Columns of a program and its warps."""
    block = max(32, triton.next_power_of_2(num_columns))
    return block, min(16, max(1, block // COLUMNS_PER_WARP))


@triton.jit
def _rms_norm(x, x_stride, weight, y, num_columns, eps, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    exists = column < num_columns
    gain = tl.load(weight + column, mask=exists, other=0.0).to(tl.float32)
    value = tl.load(x + row * x_stride + column, mask=exists, other=0.0).to(tl.float32)
    _store_normalized(value, gain, y + row * num_columns, column, exists, num_columns, eps)


@triton.jit
def _add_rms_norm(
    x, x_stride, residual, residual_stride, weight, y, new_residual, num_columns, eps,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    exists = column < num_columns
    gain = tl.load(weight + column, mask=exists, other=0.0).to(tl.float32)
    value = tl.load(residual + row * residual_stride + column, mask=exists, other=0.0)
    value += tl.load(x + row * x_stride + column, mask=exists, other=0.0).to(tl.float32)
    tl.store(new_residual + row * num_columns + column, value, mask=exists)
    _store_normalized(value, gain, y + row * num_columns, column, exists, num_columns, eps)


@triton.jit
def _store_normalized(value, gain, y, column, exists, num_columns, eps):
    scale = tl.rsqrt(tl.sum(value * value) / num_columns + eps)
    tl.store(y + column, (value * scale * gain).to(y.dtype.element_ty), mask=exists)


_launch_norm = Launcher(_rms_norm)
_launch_add_norm = Launcher(_add_rms_norm)
