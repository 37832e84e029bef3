# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""8-bit floats (e4m3) on the device: rows on their way into a product, and keys and values on theirs into the cache.

A row of activations gets its own scale, which brings its largest number to 448; graph/ops/fp8.py has the same in
torch. Keys and values are stored as they are, without a scale: e4m3 has 3 bits of mantissa from 2^-6 to 448 and loses
one with each halving below, where 2 % of a SmolLM2-135M's keys and values lie. A scale a token and head would bring its
mean error of a log-probability from 0.072 to 0.060 nat (765 places, references), for 3 to 6 % more bytes to read and
another layout of pages. Attention reads them into float16, which holds every e4m3 number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.launch import Launcher, follow, kind_of, starts_early
from phloem.kernels.triton.row_fp8 import multiply_row

FP8 = torch.float8_e4m3fn
COMPILES = tl.constexpr(not triton.knobs.runtime.interpret)
COLUMNS_PER_WARP = 1024


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 numbers [T, K], float32 scale [T, 1]) of x [T, K], whose last dim is contiguous: x = numbers * scale."""
    num_rows, num_columns = x.shape
    numbers = torch.empty((num_rows, num_columns), dtype=FP8, device=x.device)
    scale = torch.empty((num_rows, 1), dtype=torch.float32, device=x.device)
    if num_rows:
        block = max(32, triton.next_power_of_2(num_columns))
        num_warps = min(16, max(1, block // COLUMNS_PER_WARP))
        arguments = x, x.stride(0), numbers, scale, num_columns
        early = starts_early(x.device)
        _launch(
            (num_rows, 1, 1), *arguments, kind=kind_of(*arguments), constants={"BLOCK": block, "EARLY": early},
            num_warps=num_warps, early=early,
        )  # fmt: skip
    return numbers, scale


def linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (W * scale)^T + b in x's type: x [T, K], weight [N, K] e4m3, scale [N, 1] float32, bias [N].

    A row alone by row_fp8.py, more by cuBLAS or CUTLASS through torch, which sum in the tensor cores' own precision and
    round to bfloat16.
    """
    numbers, x_scale = quantize_rows(x)
    if len(x) == 1:
        return multiply_row(numbers, x_scale, weight, scale, bias, x.dtype)
    y = torch._scaled_mm(
        numbers, weight.t(), scale_a=x_scale, scale_b=scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return y.to(x.dtype) if bias is None else (y + bias).to(x.dtype)


@triton.jit
def _quantize_rows(x, x_stride, numbers, scale, num_columns, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    value = tl.load(x + row * x_stride + column, mask=column < num_columns, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(value))
    row_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    tl.store(scale + row, row_scale)
    tl.store(
        numbers + row * num_columns + column, to_cache(value / row_scale, tl.float8e4nv), mask=column < num_columns
    )


_launch = Launcher(_quantize_rows)


@triton.jit
def to_cache(value, TYPE: tl.constexpr):
    """float32 rounded to a cache's type; what an 8-bit float cannot hold becomes its largest number. NaN stays."""
    if tl.float8e4nv == TYPE:
        value = tl.clamp(value, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return value.to(TYPE)


@triton.jit
def widen(numbers, TYPE: tl.constexpr):
    """Keys or values as numbers of the type they are multiplied in.

    8-bit floats become float16 in the registers that a load left them in. A plain cast would be moved behind the
    exchange that brings a tile into the order of the matrix units, and that exchange would handle byte by byte.
    """
    if numbers.dtype == tl.float8e4nv and COMPILES:
        numbers = tl.inline_asm_elementwise(
            "{ .reg .b16 a, b; mov.b32 {a, b}, $2; cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b; }",
            "=r,=r,r", [numbers], dtype=tl.float16, is_pure=False, pack=4,
        )  # fmt: skip
    return numbers.to(TYPE)


@triton.jit
def as_operand(q, kv):
    """Queries in what they are multiplied in: float16 where the cache holds 8-bit floats, else their own type."""
    if kv.dtype.element_ty == tl.float8e4nv:
        q = q.to(tl.float16)
    return q
