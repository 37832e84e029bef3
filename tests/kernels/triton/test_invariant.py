"""Products whose rows do not know each other, against the references. tests/gpu/test_deterministic.py compares bits."""

from __future__ import annotations

import pytest
import torch

from phloem.graph.ops import fp8, model
from phloem.kernels.triton.invariant import TILES, Tile, choose_tile, linear, linear_fp8
from tests.kernels.triton.compare import poison_allocator, randn, strided


@pytest.mark.parametrize("float32_out", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "num_columns", "depth"), [(1, 1, 16), (63, 33, 64), (65, 130, 200), (2, 96, 128), (0, 32, 64)]
)
def test_linear(device: torch.device, num_rows: int, num_columns: int, depth: int, float32_out: bool) -> None:
    """Red if a row, a column or a tail of the depth is left out or read from a neighbour."""
    x = strided(randn(num_rows, depth, seed=1, device=device, dtype=torch.float16))
    weight = randn(num_columns, depth, seed=2, device=device, dtype=torch.float16)
    bias = randn(num_columns, seed=3, device=device, dtype=torch.float16) if num_columns % 2 else None
    want = model.linear(x, weight, bias, float32_out)
    poison_allocator(device, *want.shape, dtype=want.dtype)
    got = linear(x, weight, bias, float32_out)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile(device: torch.device, tile: Tile) -> None:
    """Red if some tile leaves an edge unwritten."""
    x, weight = (randn(n, 128, seed=n, device=device, dtype=torch.float16) for n in (130, 270))
    want = model.linear(x, weight, None, False)
    poison_allocator(device, *want.shape, dtype=want.dtype)
    torch.testing.assert_close(linear(x, weight, tile=tile), want, rtol=1e-3, atol=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter multiplies 8-bit floats as integers")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [1, 65, 300])
def test_linear_fp8(device: torch.device, num_rows: int, dtype: torch.dtype) -> None:
    """Red if a scale meets another row or column."""
    x = randn(num_rows, 1024, seed=1, device=device, dtype=dtype)
    weight = fp8.quantize_rows(randn(160, 1024, seed=2, device=device))
    bias = randn(160, seed=3, device=device, dtype=dtype)
    got, want = linear_fp8(x, *weight, bias), fp8.linear_fp8(x, *weight, bias)
    assert got.dtype == dtype
    assert (got.float() - want.float()).norm() / want.float().norm() < 5e-3


def test_tiles_fill_the_device() -> None:
    """Red if a large product is cut into small tiles, or a small one into too few to keep a device busy."""
    assert choose_tile(8192, 6144) == choose_tile(256, 151_936) == choose_tile(256, 6144) == TILES[0]
    assert choose_tile(256, 4096) == choose_tile(64, 151_936) == choose_tile(1, 151_936) == TILES[1]
    assert choose_tile(256, 1024) == choose_tile(1, 1024) == TILES[2]
