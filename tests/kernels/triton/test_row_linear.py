"""norm_linear, norm_gated_linear and linear_add against the ops they replace. Red when an input or output at the end of
a block is left out or counted twice, gate and up are taken for each other, or a row takes another's numbers."""

from __future__ import annotations

import pytest
import torch

from phloem.graph.ops import fused
from phloem.kernels.triton.row_linear import linear_add, norm_gated_linear, norm_linear
from tests.kernels.triton.compare import DTYPES, EPS, poison_allocator, randn

SIZES = ((1, 8, 16), (1, 5, 24), (2, 40, 576), (1, 64, 1024), (3, 17, 1032), (4, 8, 2048), (2, 9, 3080), (1, 5288, 40))
"""Rows, outputs, inputs: whole blocks, parts of one, several."""


@pytest.mark.parametrize(("num_rows", "num_outputs", "num_inputs"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_a_norm(
    device: torch.device, dtype: torch.dtype, num_rows: int, num_outputs: int, num_inputs: int
) -> None:
    x = randn(num_rows, num_inputs, seed=1, device=device) * 3
    gain, bias = (randn(size, seed=2, device=device, dtype=dtype) for size in (num_inputs, num_outputs))
    weight = randn(2 * num_outputs, num_inputs, seed=3, device=device) * num_inputs**-0.5
    weight = weight.to(dtype)
    poison_allocator(device, num_rows, num_outputs, dtype=dtype)
    one = weight[:num_outputs].contiguous()
    assert_close(norm_linear(x, gain, EPS, one, bias), fused.norm_linear(x, gain, EPS, one, bias))
    poison_allocator(device, num_rows, num_outputs, dtype=dtype)
    assert_close(norm_gated_linear(x, gain, EPS, weight), fused.norm_gated_linear(x, gain, EPS, weight))


@pytest.mark.parametrize(("num_rows", "num_outputs", "num_inputs"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_add(device: torch.device, dtype: torch.dtype, num_rows: int, num_outputs: int, num_inputs: int) -> None:
    x = randn(num_rows, num_inputs, seed=1, device=device, dtype=dtype)
    weight = (randn(num_outputs, num_inputs, seed=2, device=device) * num_inputs**-0.5).to(dtype)
    bias, residual = (
        randn(num_outputs, seed=3, device=device, dtype=dtype),
        randn(num_rows, num_outputs, seed=4, device=device),
    )
    for one in (None, bias):
        poison_allocator(device, num_rows, num_outputs, dtype=torch.float32)
        actual, expected = (op(x, weight, one, residual) for op in (linear_add, fused.linear_add))
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_numbers_that_float16_cannot_hold_squared(device: torch.device) -> None:
    """The norm's scale is applied last: what it scales must not overflow on the way."""
    x, gain = torch.full((1, 64), 3e5, device=device), torch.ones(64, device=device, dtype=torch.float16)
    weight = torch.ones(8, 64, device=device, dtype=torch.float16)
    torch.testing.assert_close(norm_linear(x, gain, EPS, weight, None), torch.full((1, 8), 64.0, device=device).half())


def test_no_rows(device: torch.device) -> None:
    x, gain = torch.empty(0, 64, device=device), torch.ones(64, device=device)
    assert norm_gated_linear(x, gain, EPS, torch.ones(8, 64, device=device)).shape == (0, 4)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The reference rounds what it has normalized, and the kernel does not: a few roundings of the type apart."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    error = (actual.float() - expected.float()).norm() / expected.float().norm()
    assert error < {torch.bfloat16: 1.5e-2, torch.float16: 2e-3}[actual.dtype]
