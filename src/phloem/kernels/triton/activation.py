# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""SwiGLU on the merged projection. Shazeer 2020, "GLU Variants Improve Transformer"."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.launch import Launcher, follow, kind_of, starts_early

BLOCK = 1024
NUM_WARPS = 4


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of the columns, in float32: [T, 2F] -> [T, F]; rows may be strided."""
    num_rows, num_columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_rows, num_columns), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        arguments = gate_up, gate_up.stride(0), out, num_columns
        early = starts_early(gate_up.device)
        _launch(
            (num_rows, triton.cdiv(num_columns, BLOCK), 1), *arguments, kind=kind_of(*arguments),
            constants={"BLOCK": BLOCK, "EARLY": early}, num_warps=NUM_WARPS, early=early,
        )  # fmt: skip
    return out


@triton.jit
def _silu_mul(gate_up, stride, out, num_columns, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < num_columns
    gate = tl.load(gate_up + row * stride + column, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + num_columns + column, mask=exists, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * num_columns + column, value.to(out.dtype.element_ty), mask=exists)


_launch = Launcher(_silu_mul)
