"""Runs the library's real AMX instructions under amx_trap.cpp and compares with the emulating library, bit for bit.

python -m tests.kernels.cpu.trapped_amx TRAP.so REAL.so EMULATING.so    (a process of its own: it owns SIGILL)
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

from phloem.kernels.cpu import library
from phloem.kernels.cpu.library import Library
from phloem.kernels.cpu.pack import Packer, natural_storage
from tests.kernels.blocks import random_weight
from tests.kernels.cpu.test_attention import Engine, Layer, Row, pages_for, random_qkv
from tests.kernels.cpu.test_linear import run_linear

SHAPES = ((200, 256), (72, 1536), (16, 32))
ROW_COUNTS = (1, 2, 15, 16, 17, 31, 32, 33, 49)
ATTENTION_LAYERS = (Layer(), Layer(heads=16, kv_heads=1, dim=128, page_size=96), Layer(window=40))
INSTRUCTIONS = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps")


def compare(real: Library, emulating: Library, encoding: str, rows: int, columns: int) -> None:
    """AssertionError where the instructions and their emulation, or two numbers of rows, give different bits."""
    pools = real.pool(2), emulating.pool(2)
    weight = random_weight(encoding, rows, columns)
    packed = Packer(real, pools[0]).pack(weight, storage=natural_storage(encoding))
    x = torch.randn(200, columns, generator=torch.Generator().manual_seed(rows)).to(torch.bfloat16)
    whole = run_linear(real, pools[0], x, packed)
    case = (encoding, rows, columns)
    assert torch.equal(whole, run_linear(emulating, pools[1], x, packed)), case
    for count in ROW_COUNTS:
        assert torch.equal(run_linear(real, pools[0], x[:count].contiguous(), packed), whole[:count]), (case, count)
    for pool in pools:
        pool.close()


def compare_attention(real: Library, emulating: Library, layer: Layer) -> None:
    """A prompt with a tail, then steps of one and of three tokens: the same bits from instructions and emulation."""
    context = 170
    qkv, pages = random_qkv(layer, context, seed=1), pages_for(context, layer.page_size, 1)
    outputs = []
    for native in (real, emulating):
        pool = native.pool(2)
        engine = Engine(native, pool, layer)
        rows = [Row(qkv[:end], begin, pages) for begin, end in ((0, 166), (166, 167), (167, 170))]
        outputs.append(torch.cat([engine.step([row])[0] for row in rows]))
        pool.close()
    assert not outputs[0].isnan().any(), layer
    assert torch.equal(*outputs), layer


def main(trap_path: str, real_path: str, emulating_path: str) -> None:
    """The case that differs, or a fault that the trap names, ends the process; otherwise prints what was executed."""
    trap = ctypes.CDLL(trap_path)
    emulating = library.load(Path(emulating_path))
    assert emulating.library is not None, emulating.reason
    assert emulating.library.uses_amx, emulating.reason
    assert trap.amx_trap_install() == 0
    real = Library(ctypes.CDLL(real_path), uses_amx=True)
    for encoding in ("Q4_1", "Q8_0", "Q5_1", "Q6_K", "BF16"):
        for rows, columns in SHAPES:
            if encoding != "Q6_K" or columns % 256 == 0:
                compare(real, emulating.library, encoding, rows, columns)
    for layer in ATTENTION_LAYERS:
        compare_attention(real, emulating.library, layer)
    executed = {name: trap.amx_trap_executed(index) for index, name in enumerate(INSTRUCTIONS)}
    assert all(executed.values()), executed
    assert trap.amx_trap_configured_threads() == 0, "a thread kept its tiles"
    sys.stdout.write(f"{executed}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
