"""What the kernels' tests share: random numbers, poisoned memory, and the comparison with a reference."""

from __future__ import annotations

import torch

DTYPES = (torch.bfloat16, torch.float16)
EPS = 1e-6
FLOAT32_ERROR = 1e-5
HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-23}


def randn(*shape: int, seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, with rows further apart and NaN between them."""
    wide = torch.full((x.shape[0], x.shape[1] + 48), float("nan"), dtype=x.dtype, device=x.device)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def poison_allocator(device: torch.device, *shape: int, dtype: torch.dtype) -> None:
    """Leave NaN where the next tensor of this shape is likely to be allocated, so that what is not written shows."""
    torch.full(shape, float("nan"), dtype=dtype, device=device)


def assert_rounded(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float32 arithmetic and one rounding to the result's type: each element by itself."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    scale = expected.float().abs().max().item() if expected.numel() else 0.0
    rtol = 2 * HALF_ULP[expected.dtype] + FLOAT32_ERROR
    torch.testing.assert_close(actual.float(), expected.float(), rtol=rtol, atol=FLOAT32_ERROR * max(scale, 1e-6))
