"""linear and embed on packed weights, against torch on the dequantized matrix."""

from __future__ import annotations

import pytest
import torch

from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.pack import PackedWeight, Packer, natural_storage, packed_bytes
from phloem.kernels.cpu.tape import Dims, Tape
from phloem.kernels.spec import ENCODINGS
from tests.kernels.blocks import random_weight

TYPES = (torch.bfloat16, torch.float32)
ROW_COUNTS = (1, 2, 3, 5, 16, 33, 130)


def run_linear(
    native: Library,
    pool: Pool,
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    out_type: torch.dtype = torch.float32,
) -> torch.Tensor:
    tape = Tape(native, pool)
    out = torch.full((x.shape[0], weight.num_rows), float("nan"), dtype=out_type)
    tape.linear(x, weight, out, bias=bias)
    tape.run(Dims(x.shape[0], 0, 0))
    return out


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In float64, on weights rounded as the kernel rounds them for the activation type."""
    return x.double() @ weight.to(x.dtype).double().T


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 256), (40, 512), (100, 768)])
def test_every_encoding_in_its_natural_storage(
    native: Library, pool: Pool, packer: Packer, encoding: str, dtype: torch.dtype, rows: int, columns: int
) -> None:
    """Red if a storage's level order, scale or offset goes to a wrong row or column."""
    raw = random_weight(encoding, rows, columns)
    packed = packer.pack(raw, storage=natural_storage(encoding, dtype=dtype))
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = reference(x, torch.from_numpy(raw.dequantize()))
    error = (run_linear(native, pool, x, packed).double() - expected).abs().max() / expected.abs().max()
    assert error < (3e-3 if dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("storage", ["q4", "q8", "q8m", "q8h", "bf16", "f32"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (15, 64), (17, 96), (72, 1536)])
def test_odd_shapes_with_bias(
    native: Library, pool: Pool, packer: Packer, storage: str, dtype: torch.dtype, rows: int, columns: int
) -> None:
    """Red if the last partial panel reads or writes beyond N, or the bias is added to a wrong column."""
    if storage == "f32" and dtype == torch.bfloat16:
        pytest.skip("float32 weights take float32 activations")
    encoding = {"q4": "Q4_1", "q8": "Q8_0", "q8m": "Q5_1", "q8h": "Q8_0", "bf16": "BF16", "f32": "F32"}[storage]
    raw = random_weight(encoding, rows, columns, seed=3)
    packed = packer.pack(raw, storage=storage)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, columns, generator=generator).to(dtype)
    bias = torch.randn(rows, generator=generator)
    expected = reference(x, torch.from_numpy(raw.dequantize())) + bias.double()
    out = run_linear(native, pool, x, packed, bias)
    tolerance = 2e-2 if storage == "q8h" else 4e-3 if dtype == torch.bfloat16 else 3e-6
    assert (out.double() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("storage", ["q4", "q8", "q8m", "q8h", "bf16", "f32"])
def test_a_row_is_bit_identical_alone_and_in_any_batch(
    native: Library, pool: Pool, packer: Packer, storage: str, dtype: torch.dtype
) -> None:
    """Red if one row count takes another order of accumulation or another rounding of the weights."""
    if storage == "f32" and dtype == torch.bfloat16:
        pytest.skip("float32 weights take float32 activations")
    packed = packer.pack(torch.randn(200, 576, generator=torch.Generator().manual_seed(4)), storage=storage)
    x = torch.randn(450, 576, generator=torch.Generator().manual_seed(5)).to(dtype)
    whole = run_linear(native, pool, x, packed)
    for rows in ROW_COUNTS:
        assert torch.equal(run_linear(native, pool, x[:rows].contiguous(), packed), whole[:rows]), rows
    for row in (7, 191, 192, 449):
        assert torch.equal(run_linear(native, pool, x[row : row + 1].contiguous(), packed), whole[row : row + 1]), row


@pytest.mark.parametrize("dtype", TYPES)
def test_output_in_the_activation_type_is_the_rounded_float32_output(
    native: Library, pool: Pool, packer: Packer, dtype: torch.dtype
) -> None:
    """Red if the bfloat16 epilogue truncates instead of rounding to nearest even."""
    packed = packer.pack(random_weight("Q4_1", 48, 64), storage="q4")
    x = torch.randn(9, 64).to(dtype)
    exact = run_linear(native, pool, x, packed)
    assert torch.equal(run_linear(native, pool, x, packed, out_type=dtype), exact.to(dtype))


@pytest.mark.parametrize(("storage", "tolerance"), [("q8", 0.005), ("q4", 0.08)])
def test_quantizing_floats_stays_within_half_a_level(
    native: Library, pool: Pool, packer: Packer, storage: str, tolerance: float
) -> None:
    """Red if the quantizer fits levels to an unrounded scale, or clips one end of the range."""
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(6))
    packed = packer.pack(weight, storage=storage)
    back = run_linear(native, pool, torch.eye(256), packed).T
    groups = weight.view(32, 8, 32)
    spread = groups.amax(2) - groups.amin(2) if storage == "q4" else 2 * groups.abs().amax(2)
    step = spread / (15 if storage == "q4" else 254)
    assert ((back - weight).view(32, 8, 32).abs() <= step[:, :, None] * 0.52).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_embed_gathers_dequantized_rows(native: Library, pool: Pool, packer: Packer, encoding: str) -> None:
    """Red if a row of a panel is decoded with a neighbour's scale or nibbles."""
    raw = random_weight(encoding, 50, 256, seed=8)
    packed = packer.pack(raw, storage=natural_storage(encoding, dtype=torch.float32))
    token_ids = torch.tensor([0, 49, 17, 17, 8, 31], dtype=torch.int32)
    out = torch.empty(6, 256)
    tape = Tape(native, pool)
    tape.embed(token_ids, packed, out)
    tape.run(Dims(6, 0, 0))
    expected = torch.from_numpy(raw.dequantize())[token_ids.long()]
    assert torch.allclose(out, expected, rtol=1e-6, atol=1e-7)


def test_embed_from_every_quantized_storage_matches_linear(native: Library, pool: Pool, packer: Packer) -> None:
    """Red if embed and linear disagree on what a stored byte means (a tied embedding serves both)."""
    for encoding in ("Q4_1", "Q8_0", "Q5_1", "Q6_K", "BF16"):
        packed = packer.pack(random_weight(encoding, 33, 256, seed=9), storage=natural_storage(encoding))
        columns = run_linear(native, pool, torch.eye(256), packed).T
        out = torch.empty(33, 256)
        tape = Tape(native, pool)
        tape.embed(torch.arange(33, dtype=torch.int32), packed, out)
        tape.run(Dims(33, 0, 0))
        assert torch.equal(out, columns), encoding


def test_refusals_name_what_is_wrong(native: Library, pool: Pool, packer: Packer) -> None:
    """Red if a shape the kernels cannot take is accepted silently."""
    with pytest.raises(ValueError, match="multiple of 32"):
        packed_bytes("q4", 16, 48)
    with pytest.raises(ValueError, match="even number"):
        packed_bytes("bf16", 16, 33)
    with pytest.raises(ValueError, match="unknown storage"):
        packer.pack(torch.randn(4, 32), storage="q3")
    packed = packer.pack(torch.randn(16, 32), storage="f32")
    with pytest.raises(ValueError, match="pack them as bf16"):
        Tape(native, pool).linear(torch.zeros(1, 32, dtype=torch.bfloat16), packed, torch.zeros(1, 16))
    with pytest.raises(ValueError, match="columns"):
        Tape(native, pool).linear(torch.zeros(1, 64), packed, torch.zeros(1, 16))
