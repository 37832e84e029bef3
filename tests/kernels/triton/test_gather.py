"""embed, select_rows and linear against their references. Red when an index is read as 32 bits wide where its product
with the stride is not, when the type of the result changes, or when a column is left out."""

from __future__ import annotations

import pytest
import torch

from phloem.graph.ops import lowered, model
from phloem.kernels.triton.gather import embed, select_rows
from phloem.kernels.triton.linear import linear
from tests.kernels.triton.compare import DTYPES, poison_allocator, randn, strided


@pytest.mark.parametrize("num_columns", [1, 64, 1023, 1025, 2048])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
def test_embed_and_select_rows(device: torch.device, dtype: torch.dtype, num_columns: int) -> None:
    table = randn(40, num_columns, seed=1, device=device, dtype=dtype)
    index = torch.tensor([39, 0, 7, 7], dtype=torch.int32, device=device)
    poison_allocator(device, 4, num_columns, dtype=torch.float32)
    assert torch.equal(embed(index, table), model.embed(index, table))
    assert torch.equal(select_rows(strided(table), index), lowered.select_rows(table, index))
    assert select_rows(table, index[:0]).shape == (0, num_columns)


@pytest.mark.parametrize("float32_out", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(device: torch.device, dtype: torch.dtype, biased: bool, float32_out: bool) -> None:
    x, weight = (randn(*shape, seed=2, device=device, dtype=dtype) for shape in ((5, 64), (48, 64)))
    bias = randn(48, seed=3, device=device) if biased else None
    actual, expected = linear(x, weight, bias, float32_out), model.linear(x, weight, bias, float32_out)
    if float32_out:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    else:
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2 if biased else 1e-3)
