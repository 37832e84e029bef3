"""Row-wise ops that write int8 rows: the numbers they would have written in float32, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from phloem.graph.ops.lowered import silu_mul
from phloem.kernels.cpu.int8_rows import Int8Rows
from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.pack import Packer
from phloem.kernels.cpu.tape import Dims, Tape

ROWS, COLUMNS = 5, 96
EVEN_ODD = (0, 2, 4, 6, 1, 3, 5, 7)


def decode(rows: Int8Rows) -> torch.Tensor:
    """[rows, columns] float32: scale times level, in the order of the columns."""
    count, columns = rows.data.shape[0], rows.num_columns
    levels = rows.data[:, :columns].view(torch.int8).float().view(count, -1, 8)
    if rows.is_even_odd:
        in_order = torch.empty_like(levels)
        in_order[:, :, list(EVEN_ODD)] = levels
        levels = in_order
    scales = rows.data[:, columns : columns + columns // 2].contiguous().view(torch.float32).view(count, -1, 4)
    blocks = levels.reshape(count, -1, 32)
    halves = blocks.view(count, -1, 2, 16).sum(3)
    sums = torch.cat([blocks.sum(2, keepdim=True), halves], 2) * scales[:, :, :1]
    torch.testing.assert_close(scales[:, :, 1:], sums, rtol=1e-6, atol=0)
    return (blocks * scales[:, :, :1]).reshape(count, columns)


def close_to(rows: Int8Rows, exact: torch.Tensor) -> bool:
    """Whether every number is within half a level (and a hair) of the exact one."""
    blocks = exact.view(ROWS, -1, 32)
    half_level = blocks.abs().amax(2, keepdim=True) / 254
    return bool(((decode(rows).view_as(blocks) - blocks).abs() <= half_level * 1.001 + 1e-7).all())


@pytest.fixture(params=["q4", "q8"])
def rows(request: pytest.FixtureRequest, packer: Packer) -> Int8Rows:
    return Int8Rows.for_weight(packer.pack(torch.randn(16, COLUMNS), storage=request.param), max_rows=ROWS)


@pytest.fixture
def run(native: Library, pool: Pool) -> Callable[[Callable[[Tape], None]], None]:
    def run(emit: Callable[[Tape], None]) -> None:
        tape = Tape(native, pool)
        emit(tape)
        tape.run(Dims(ROWS, 0, 0))

    return run


def numbers(seed: int, columns: int = COLUMNS) -> torch.Tensor:
    return torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(seed)) * 3


def test_quantize(rows: Int8Rows, run: Callable[[Callable[[Tape], None]], None]) -> None:
    """Red if levels, scales or sums of a block land in another place than linear_int8.cpp reads."""
    x = numbers(1).bfloat16()
    run(lambda tape: tape.quantize(x, rows))
    assert close_to(rows, x.float())


def test_rms_norm(rows: Int8Rows, run: Callable[[Callable[[Tape], None]], None]) -> None:
    """Red if the norm rounds to bfloat16 first, or skips its weight."""
    x, weight = numbers(2), torch.rand(COLUMNS) + 0.5
    run(lambda tape: tape.rms_norm(x, weight, rows, eps=1e-5))
    assert close_to(rows, x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5) * weight)


def test_add_rms_norm(rows: Int8Rows, run: Callable[[Callable[[Tape], None]], None]) -> None:
    """Red if int8 rows are made of the sum before it is normalized, or the residual is not written."""
    x, residual, weight = numbers(3).bfloat16(), numbers(4), torch.rand(COLUMNS) + 0.5
    total = torch.empty_like(residual)
    run(lambda tape: tape.add_rms_norm(x, residual, weight, rows, eps=1e-5, new_residual=total))
    assert torch.equal(total, residual + x.float())
    assert close_to(rows, total * torch.rsqrt(total.pow(2).mean(1, keepdim=True) + 1e-5) * weight)


def test_silu_mul(rows: Int8Rows, run: Callable[[Callable[[Tape], None]], None]) -> None:
    """Red if gate and up of a block are taken from different columns."""
    gate_up = numbers(5, 2 * COLUMNS).bfloat16()
    run(lambda tape: tape.silu_mul(gate_up, rows))
    assert close_to(rows, silu_mul(gate_up.float()))


def test_a_width_that_does_not_fit_is_refused(rows: Int8Rows, native: Library, pool: Pool) -> None:
    """Red if a norm writes rows of another width into the buffer."""
    with pytest.raises(ValueError, match="must have 64 columns"):
        Tape(native, pool).rms_norm(torch.zeros(1, 64), torch.ones(64), rows, eps=1e-5)
