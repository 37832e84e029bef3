"""silu_mul against its reference. Red when halves are mixed up, a stride is assumed or a large gate gives NaN."""

from __future__ import annotations

import pytest
import torch

from phloem.graph.ops import lowered
from phloem.kernels.triton.activation import silu_mul
from tests.kernels.triton.compare import DTYPES, assert_rounded, poison_allocator, randn, strided


@pytest.mark.parametrize("num_columns", [1, 32, 1023, 1024, 1025, 3072])
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(device: torch.device, dtype: torch.dtype, num_columns: int) -> None:
    gate_up = randn(3, 2 * num_columns, seed=num_columns, device=device, dtype=dtype) * 4
    poison_allocator(device, 3, num_columns, dtype=dtype)
    assert_rounded(silu_mul(gate_up), lowered.silu_mul(gate_up))
    assert_rounded(silu_mul(strided(gate_up)), lowered.silu_mul(gate_up))


def test_extreme_gates_and_no_rows(device: torch.device) -> None:
    gate = torch.tensor([[-3e4, -200.0, 0.0, 200.0]], device=device, dtype=torch.bfloat16)
    gate_up = torch.cat((gate, torch.ones_like(gate)), dim=1)
    assert_rounded(silu_mul(gate_up), lowered.silu_mul(gate_up))
    assert silu_mul(gate_up[:0]).shape == (0, 4)
