"""8-bit floats: rows quantized for a product, and the product itself where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from phloem.graph.ops import fp8 as op
from phloem.kernels.triton.fp8 import linear_fp8, quantize_rows
from tests.kernels.triton.compare import DTYPES, poison_allocator, randn, strided


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (5, 96), (3, 5120), (0, 64)])
def test_rows_are_the_references_number_for_number(
    device: torch.device, rows: int, columns: int, dtype: torch.dtype
) -> None:
    """Red if a row takes another's scale, a zero row divides by zero, or a rounding goes another way."""
    sizes = torch.tensor([1.0, 1e-3, 300.0, 0.0, 5.0], device=device)[:rows, None]
    x = strided((randn(rows, columns, seed=columns, device=device) * sizes).to(dtype))
    poison_allocator(device, rows, 1, dtype=torch.float32)
    numbers, scale = quantize_rows(x)
    expected, expected_scale = op.quantize_rows(x)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    error = (numbers.float() - expected.float()).abs()
    assert (error <= expected.float().abs() / 8 + 2.0**-9).all(), "more than one step of e4m3"
    assert (error > 0).float().mean() < 0.01 if rows else True  # a quotient on the edge may fall to either side


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "biased"),
    [(96, 64, True), (5, 16, False), (16, 2048, False), (33, 3072, True), (8, 5120, False)],
)
def test_a_row_alone(device: torch.device, rows: int, columns: int, biased: bool, dtype: torch.dtype) -> None:
    """Red if a block of inputs is skipped or used twice, or an output beyond the last is written or read."""
    x = randn(1, columns, seed=1, device=device, dtype=dtype)
    weight = op.quantize_rows(randn(rows, columns, seed=2, device=device))
    bias = randn(rows, seed=3, device=device, dtype=dtype) if biased else None
    poison_allocator(device, 1, rows, dtype=dtype)
    got, want = linear_fp8(x, *weight, bias), op.linear_fp8(x, *weight, bias)
    assert got.dtype == dtype
    assert (got.float() - want.float()).norm() / want.float().norm() < 1e-2  # a rounding of bfloat16 is 4e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [3, 16, 17, 255, 1000])
@pytest.mark.parametrize(("rows", "columns", "biased"), [(96, 64, True), (4096, 1024, False), (1024, 3072, True)])
def test_products(
    device: torch.device, num_tokens: int, rows: int, columns: int, biased: bool, dtype: torch.dtype
) -> None:
    """Red if a scale meets another row or column, or the library refuses a number of tokens."""
    x = randn(num_tokens, columns, seed=1, device=device, dtype=dtype)
    weight = op.quantize_rows(randn(rows, columns, seed=2, device=device))
    bias = randn(rows, seed=3, device=device, dtype=dtype) if biased else None
    got, want = linear_fp8(x, *weight, bias), op.linear_fp8(x, *weight, bias)
    assert got.dtype == dtype
    assert (got.float() - want.float()).norm() / want.float().norm() < 1e-2  # a rounding of bfloat16 is 4e-3
