"""The thread pool: many short tapes, empty instructions, sleeping workers, more threads than processors."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from phloem.kernels.cpu import library
from phloem.kernels.cpu.library import Library
from phloem.kernels.cpu.pack import Packer
from phloem.kernels.cpu.tape import Dims, Rows, Tape


def chain(native: Library, num_threads: int) -> tuple[Tape, torch.Tensor, torch.Tensor]:
    """Forty dependent instructions whose result shows any that ran early, twice or never."""
    pool = native.pool(num_threads)
    identity = Packer(native, pool).pack(torch.eye(64), storage="f32")
    a, b, residual = torch.empty(9, 64), torch.empty(9, 64), torch.empty(9, 64)
    weight = torch.ones(64)
    tape = Tape(native, pool)
    for _ in range(20):
        tape.linear(a, identity, b)
        tape.rms_norm(residual, weight, b, eps=1e-6, rows=Rows.LOGITS)  # no logit rows: nothing to do
        tape.add_rms_norm(b, residual, weight, a, eps=0.0)
    return tape, a, residual


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_every_instruction_runs_once_and_in_order(native: Library, num_threads: int) -> None:
    """Red if an instruction starts before the last item of the one before is finished, or is skipped."""
    tape, a, residual = chain(native, num_threads)
    a.fill_(1.0)
    residual.fill_(0.0)
    tape.run(Dims(9, 0, 0))
    expected = residual.clone(), a.clone()
    assert torch.equal(residual, torch.full_like(residual, 20.0))
    for turn in range(60):
        a.fill_(1.0)
        residual.fill_(0.0)
        if turn % 20 == 0:
            time.sleep(0.005)  # long enough for the workers to fall asleep
        tape.run(Dims(9, 0, 0))
        assert torch.equal(residual, expected[0])
        assert torch.equal(a, expected[1])


def test_pools_beside_each_other_do_not_stall(native: Library) -> None:
    """Red if a thread that lost its processor between reading and claiming work can corrupt the next instruction
    (more threads than processors make that frequent)."""
    failures: list[str] = []

    def work() -> None:
        tape, a, residual = chain(native, 3)
        for _ in range(40):
            a.fill_(1.0)
            residual.fill_(0.0)
            tape.run(Dims(9, 0, 0))
            if not torch.equal(residual, torch.full_like(residual, 20.0)):
                failures.append("wrong result")

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures


def test_a_step_of_nothing_returns(native: Library) -> None:
    """Red if a tape whose every instruction is empty waits for work."""
    tape, _, _ = chain(native, 2)
    tape.run(Dims(0, 0, 0))
    Tape(native, native.pool(1)).run(Dims(5, 5, 5))


def test_a_missing_library_is_a_reason_not_an_error(tmp_path: Path) -> None:
    """Red if loading raises where the file is absent or is no library."""
    assert library.load(tmp_path / "none.so").library is None
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    found = library.load(broken)
    assert found.library is None
    assert "does not load" in found.reason
    assert not found.machine().capabilities
