"""rms_norm and add_rms_norm against their references. Red when a column is left out of a sum or of the result, when a
stride is assumed, or when a row's bits depend on the rows around it."""

from __future__ import annotations

import pytest
import torch

from phloem.graph.ops import lowered, model
from phloem.kernels.triton.norm import add_rms_norm, rms_norm
from tests.kernels.triton.compare import DTYPES, EPS, assert_rounded, poison_allocator, randn, strided

COLUMNS = (1, 31, 32, 33, 511, 1024, 1025, 5120)


@pytest.mark.parametrize("num_columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(device: torch.device, dtype: torch.dtype, num_columns: int) -> None:
    weight = randn(num_columns, seed=1, device=device, dtype=dtype)
    for x in (
        randn(3, num_columns, seed=2, device=device) * 3,
        randn(2, 2, num_columns, seed=3, device=device).to(dtype),
    ):
        poison_allocator(device, *x.shape, dtype=dtype)
        assert_rounded(rms_norm(x, weight, EPS), model.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("num_columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(device: torch.device, dtype: torch.dtype, num_columns: int) -> None:
    x, residual = (randn(4, num_columns, seed=seed, device=device) for seed in (1, 2))
    x, weight = x.to(dtype), randn(num_columns, seed=3, device=device, dtype=dtype)
    poison_allocator(device, *x.shape, dtype=dtype)
    y, total = add_rms_norm(strided(x), strided(residual), weight, EPS)
    expected_y, expected_total = lowered.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, expected_total)
    assert_rounded(y, expected_y)


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    x, residual = (randn(9, 1000, seed=seed, device=device) for seed in (4, 5))
    x, weight = x.bfloat16(), randn(1000, seed=6, device=device)
    together, alone = add_rms_norm(x, residual, weight, EPS), add_rms_norm(x[7:8], residual[7:8], weight, EPS)
    assert torch.equal(together[0][7:8], alone[0])


def test_large_numbers_and_no_rows(device: torch.device) -> None:
    """Squares of float16's largest numbers stay finite in float32; an empty step gives empty tensors."""
    weight = torch.ones(64, device=device, dtype=torch.float16)
    huge = torch.full((1, 64), 6e4, device=device, dtype=torch.float16)
    assert_rounded(rms_norm(huge, weight, EPS), model.rms_norm(huge, weight, EPS))
    assert rms_norm(huge[:0], weight, EPS).shape == (0, 64)
    assert [t.shape for t in add_rms_norm(huge[:0], huge[:0].float(), weight, EPS)] == [(0, 64)] * 2
