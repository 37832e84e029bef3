"""Linears over 8-bit floats (e4m3: 3 bits of mantissa, largest number 448), and how a matrix becomes such numbers.

Shape suffixes: T tokens, N outputs and K inputs of a linear.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from phloem.graph.ops.contract import Example, Op, ShapeError, Spec, rank, same

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest e4m3 number; torch turns what lies beyond into NaN, so values are clamped to it first."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 numbers of x's shape, float32 scale [rows, 1]): x = numbers * scale, the largest of a row being 448."""
    largest = x.abs().amax(dim=1, keepdim=True).float()
    scale = torch.where(largest > 0, largest / FP8_MAX, 1.0)
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def to_cache(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values in the type of their cache: as they are, but for what lies beyond the largest 8-bit float."""
    return (x.clamp(-FP8_MAX, FP8_MAX) if dtype == FP8 else x).to(dtype)


def _linear_fp8(x_TK: Tensor, weight_NK: Tensor, scale_N1: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x (W * scale)^T + b in x's type. W is e4m3; x is quantized row by row on the way; sums are float32."""
    numbers_TK, scale_T1 = quantize_rows(x_TK)
    y_TN = F.linear(numbers_TK.float(), weight_NK.float()) * scale_T1 * scale_N1.t()
    return (y_TN if bias_N is None else y_TN + bias_N.float()).to(x_TK.dtype)


def _linear_fp8_shape(x: Spec, weight: Spec, scale: Spec, bias: Spec | None) -> Spec:
    T, K = rank("x", x, 2)
    N, columns = rank("weight", weight, 2)
    same("columns of x and weight", K, columns)
    same("rows of weight and scale", N, rank("scale", scale, 2)[0])
    if scale.shape[1] != 1:
        raise ShapeError(f"the scale is {scale}, expected one number a row")
    if bias is not None:
        same("rows of weight and bias", N, *rank("bias", bias, 1))
    return Spec((T, N), x.dtype)


def _linear_fp8_examples(g: torch.Generator, dtype: torch.dtype) -> Iterator[Example]:
    for T, K, N, biased in ((1, 64, 32, False), (6, 64, 96, True), (70, 128, 48, False)):
        bias = torch.randn(N, generator=g) if biased else None
        yield torch.randn(T, K, generator=g).to(dtype), *quantize_rows(torch.randn(N, K, generator=g)), bias


linear_fp8 = Op("linear_fp8", _linear_fp8, _linear_fp8_shape, _linear_fp8_examples)
