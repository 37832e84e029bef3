"""The ops that treat each row alone, against torch."""

from __future__ import annotations

import pytest
import torch

from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.tape import Dims, Rows, Tape

TYPES = (torch.bfloat16, torch.float32)
SHAPES = ((1, 576), (3, 64), (33, 100), (130, 17), (5, 16), (2, 1000))
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.double()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_rms_norm(native: Library, pool: Pool, rows: int, columns: int, dtype: torch.dtype) -> None:
    """Red if the tail of a row that is no multiple of sixteen is dropped or counted twice."""
    x, weight = torch.randn(rows, columns), torch.rand(columns)
    out = torch.empty(rows, columns, dtype=dtype)
    tape = Tape(native, pool)
    tape.rms_norm(x, weight, out, eps=1e-5)
    tape.run(Dims(rows, 0, 0))
    assert torch.allclose(out.double(), rms_norm(x, weight, 1e-5), rtol=TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_add_rms_norm_in_place_and_apart(
    native: Library, pool: Pool, rows: int, columns: int, dtype: torch.dtype
) -> None:
    """Red if the residual loses precision or the norm is taken of the old residual."""
    x, residual, weight = torch.randn(rows, columns).to(dtype), torch.randn(rows, columns), torch.rand(columns)
    total = residual + x.float()
    for apart in (torch.empty_like(residual), None):
        out, work = torch.empty(rows, columns, dtype=dtype), residual.clone()
        tape = Tape(native, pool)
        tape.add_rms_norm(x, work, weight, out, eps=1e-6, new_residual=apart)
        tape.run(Dims(rows, 0, 0))
        assert torch.equal(work if apart is None else apart, total)
        assert torch.allclose(out.double(), rms_norm(total, weight, 1e-6), rtol=TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_silu_mul(native: Library, pool: Pool, rows: int, columns: int, dtype: torch.dtype) -> None:
    """Red if gate and up swap, or the exponential overflows for large negative gates."""
    gate_up = (torch.randn(rows, 2 * columns) * 4).to(dtype)
    gate_up[0, 0], gate_up[0, 1], gate_up[0, 2] = -1e4, 1e4, -90.0
    out = torch.empty(rows, columns, dtype=dtype)
    tape = Tape(native, pool)
    tape.silu_mul(gate_up, out)
    tape.run(Dims(rows, 0, 0))
    gate, up = gate_up.double().chunk(2, dim=1)
    expected = gate * torch.sigmoid(gate) * up
    assert torch.allclose(out.double(), expected, rtol=TOLERANCE[dtype], atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_select_rows_takes_logit_rows_only(native: Library, pool: Pool, dtype: torch.dtype) -> None:
    """Red if it copies a row for every token, or miscounts bytes."""
    x = torch.randn(9, 33).to(dtype)
    out = torch.zeros(4, 33, dtype=dtype)
    tape = Tape(native, pool)
    tape.select_rows(x, torch.tensor([8, 0, 3, 5], dtype=torch.int32), out)
    tape.run(Dims(9, 3, 0))
    assert torch.equal(out[:3], x[[8, 0, 3]])
    assert not out[3].any()


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 49152, 49157])
def test_argmax_is_the_first_of_the_largest(native: Library, pool: Pool, columns: int) -> None:
    """Red if ties resolve to another lane, or the tail is skipped."""
    logits = torch.randn(6, columns)
    logits[1, -1] = 99.0
    logits[2, columns // 3 :] = 50.0
    logits[3] = -1e30
    logits[4] = float("-inf")
    ids, values = torch.empty(6, dtype=torch.int32), torch.empty(6)
    tape = Tape(native, pool)
    tape.argmax(logits, ids, values)
    tape.run(Dims(0, 6, 0))
    first = (logits == logits.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(values, logits.amax(1))
    assert torch.equal(ids.long(), first)


def test_rows_may_run_over_tokens_logits_or_one(native: Library, pool: Pool) -> None:
    """Red if an instruction takes its count from the wrong dimension."""
    x, weight = torch.randn(8, 32), torch.ones(32)
    for rows, expected in ((Rows.TOKENS, 5), (Rows.LOGITS, 2), (Rows.ONE, 1)):
        out = torch.zeros(8, 32)
        tape = Tape(native, pool)
        tape.rms_norm(x, weight, out, eps=1e-6, rows=rows)
        tape.run(Dims(5, 2, 3))
        assert int(out.any(dim=1).sum()) == expected
