"""The AMX kernels on any processor: emulated in C++, and their machine code under a trap that emulates instructions.

Where the processor has AMX, test_linear.py runs on it as well, and here it is compared with AVX-512.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from phloem.kernels.cpu import library
from phloem.kernels.cpu.build import build
from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.pack import Packer, natural_storage
from tests.kernels.blocks import random_weight
from tests.kernels.cpu import test_attention as attention
from tests.kernels.cpu.test_linear import reference, run_linear

HERE = Path(__file__).resolve().parent
ENCODINGS = ("Q4_1", "Q8_0", "Q5_1", "Q6_K", "BF16")  # one for each storage
LAYERS = [layer for layer in attention.LAYERS if layer.dtype == torch.bfloat16 and layer.dim % 32 == 0]
ROW_COUNTS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 48, 49, 130)


def processor_flags() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text().split() if cpuinfo.exists() else []


@pytest.fixture(scope="module")
def emulated_path(native: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library built with emulated tiles."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    flags = ("-DPHLOEM_EMULATE_AMX", "-include", str(HERE / "emulated_faults.h"))
    return build(tmp_path_factory.mktemp("amx") / "_native.so", flags)


@pytest.fixture(scope="module")
def emulated(emulated_path: Path) -> Library:
    """The library on emulated tiles; its own trial has passed."""
    found = library.load(emulated_path)
    assert found.library is not None
    assert found.library.uses_amx, found.reason
    assert "amx_bf16" in found.machine().capabilities
    return found.library


@pytest.fixture(scope="module")
def emulated_pool(emulated: Library) -> Iterator[Pool]:
    pool = emulated.pool(2)
    yield pool
    pool.close()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("rows", "columns"), [(200, 256), (72, 1536)])
def test_emulated_amx_agrees_with_torch_and_with_itself_for_any_number_of_rows(
    emulated: Library, emulated_pool: Pool, encoding: str, rows: int, columns: int
) -> None:
    """Red if a tile is loaded with a wrong stride, a tail row is lost, or few and many rows round differently."""
    raw = random_weight(encoding, rows, columns)
    packed = Packer(emulated, emulated_pool).pack(raw, storage=natural_storage(encoding))
    x = torch.randn(530, columns, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    whole = run_linear(emulated, emulated_pool, x, packed)
    expected = reference(x, torch.from_numpy(raw.dequantize()))
    assert (whole.double() - expected).abs().max() < 4e-3 * expected.abs().max()
    for count in ROW_COUNTS:
        assert torch.equal(run_linear(emulated, emulated_pool, x[:count].contiguous(), packed), whole[:count]), count
    for row in (7, 265, 529):
        alone = run_linear(emulated, emulated_pool, x[row : row + 1].contiguous(), packed)
        assert torch.equal(alone, whole[row : row + 1]), row


def test_bias_and_bfloat16_output_of_emulated_amx(emulated: Library, emulated_pool: Pool) -> None:
    """Red if the epilogue reads sums of a neighbouring panel or row, in full tiles or in tails."""
    packed = Packer(emulated, emulated_pool).pack(random_weight("Q4_1", 72, 64), storage="q4")
    x, bias = torch.randn(37, 64).to(torch.bfloat16), torch.randn(72)
    plain = run_linear(emulated, emulated_pool, x, packed)
    assert torch.equal(run_linear(emulated, emulated_pool, x, packed, bias), plain + bias)
    rounded = run_linear(emulated, emulated_pool, x, packed, bias, torch.bfloat16)
    assert torch.equal(rounded, (plain + bias).to(torch.bfloat16))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_attention_on_emulated_amx(emulated: Library, emulated_pool: Pool, layer: attention.Layer) -> None:
    """Red if a tile of keys or values is misplaced, NaN beyond the last key is read, or bits depend on the cut."""
    for context in (1, 31, 33, 129, 300):
        attention.test_prefill_matches_torch(emulated, emulated_pool, layer, context)
    attention.test_any_chunking_of_a_prompt_gives_the_same_bits(emulated, emulated_pool, layer)
    attention.test_a_batch_of_prefill_and_decode_gives_the_bits_of_each_alone(emulated, emulated_pool, layer)
    attention.test_shared_groups_give_the_same_bits_as_none(emulated, emulated_pool, layer)


def test_many_rows_of_a_group_on_emulated_amx(emulated: Library, emulated_pool: Pool) -> None:
    """Red if more query vectors than one tile of rows lose some, or mix."""
    attention.test_many_rows_of_a_group_exceed_one_working_set(emulated, emulated_pool, torch.bfloat16)


def test_columns_that_do_not_fill_a_tile_stay_on_avx512(
    native: Library, pool: Pool, emulated: Library, emulated_pool: Pool
) -> None:
    """Red if AMX reads beyond a row that is no multiple of 32 columns."""
    weight, x = torch.randn(40, 50), torch.randn(20, 50).to(torch.bfloat16)
    outputs = [
        run_linear(lib, threads, x, Packer(lib, threads).pack(weight, storage="bf16"))
        for lib, threads in ((native, pool), (emulated, emulated_pool))
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("fault", "reason"), [(1, "other numbers"), (2, "other numbers"), (3, "crashed")], ids=["wrong", "rows", "illegal"]
)
def test_amx_that_fails_its_trial_is_not_used(emulated: Library, emulated_path: Path, fault: int, reason: str) -> None:
    """Red if the trial lets pass sums a percent off, sums that depend on the number of rows, or a fault."""
    switch = ctypes.c_int.in_dll(ctypes.CDLL(str(emulated_path.resolve())), "emulated_fault")
    try:
        switch.value = fault
        found = library.load(emulated_path)
    finally:
        switch.value = 0
    assert found.library is not None
    assert not found.library.uses_amx
    assert "amx_bf16" not in found.machine().capabilities
    assert reason in found.reason


def test_the_trial_passes_where_the_parent_ignored_the_end_of_children(emulated: Library, emulated_path: Path) -> None:
    """Red if the verdict is read from an exit status, which the kernel drops when SIGCHLD is ignored."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        found = library.load(emulated_path)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert found.library is not None
    assert found.library.uses_amx, found.reason


def test_a_fault_in_the_trial_is_quiet(emulated: Library, emulated_path: Path) -> None:
    """Red if the child dies in its parent's fault handler, whose report reads as if the engine had crashed."""
    script = (
        "import ctypes, sys; from pathlib import Path; from phloem.kernels.cpu import library\n"
        "path = Path(sys.argv[1]); ctypes.c_int.in_dll(ctypes.CDLL(str(path)), 'emulated_fault').value = 3\n"
        "assert 'crashed' in library.load(path).reason"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", script, str(emulated_path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Illegal instruction" not in done.stderr


def test_amx_can_be_declined(native: Library) -> None:
    """Red if the switch is ignored."""
    found = library.load(allow_amx=False)
    assert found.library is not None
    assert not found.library.uses_amx


def test_machine_code_gives_the_bits_of_the_emulation(native: Library, emulated_path: Path, tmp_path: Path) -> None:
    """Red if the compiled tile instructions use a wrong tile, stride, address or configuration, or never release."""
    if "amx_tile" in processor_flags():
        pytest.skip("the processor executes AMX itself")
    trap = tmp_path / "amx_trap.so"
    compiler = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off"]
    subprocess.run([*compiler, str(HERE / "amx_trap.cpp"), "-o", str(trap)], check=True)
    real = next(place for place in library.candidates() if place.exists())
    command = [sys.executable, "-m", "tests.kernels.cpu.trapped_amx", str(trap), str(real), str(emulated_path)]
    done = subprocess.run(command, cwd=HERE.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tdpbf16ps" in done.stdout


def test_a_processor_with_amx_uses_it(native: Library) -> None:
    """Red if the trial fails on real hardware."""
    if "amx_bf16" not in processor_flags():
        pytest.skip("no AMX")
    reason = library.load().reason
    if "refused" in reason:
        pytest.skip(reason)
    assert native.uses_amx, reason


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_real_amx_agrees_with_avx512(native: Library, pool: Pool, packer: Packer, encoding: str) -> None:
    """Red if the processor's tiles differ from dot products by more than the order of a float32 sum."""
    if not native.uses_amx:
        pytest.skip("AMX is not in use")
    plain = library.load(allow_amx=False).library
    assert plain is not None
    packed = packer.pack(random_weight(encoding, 200, 1536), storage=natural_storage(encoding))
    x = torch.randn(ROW_COUNTS[-1], 1536, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    expected = run_linear(plain, pool, x, packed)
    for count in ROW_COUNTS:
        out = run_linear(native, pool, x[:count].contiguous(), packed)
        assert (out - expected[:count]).abs().max() < 1e-5 * expected.abs().max(), count
