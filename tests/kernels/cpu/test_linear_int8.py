"""linear on int8 activations, against torch on activations quantized in Python as the format says (ggml's Q8_1)."""

from __future__ import annotations

import pytest
import torch

from phloem.kernels.cpu.int8_rows import Int8Rows
from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.pack import PackedWeight, Packer, natural_storage
from phloem.kernels.cpu.tape import Dims, Tape
from phloem.kernels.spec import ENCODINGS
from tests.kernels.blocks import random_weight

QUANTIZED = [encoding for encoding in ENCODINGS if encoding.startswith("Q")]
ROW_COUNTS = (1, 2, 3, 5, 16, 17, 32, 33, 49, 130)
STORAGES = ("q4", "q8", "q8m", "q8h")


def run_int8(
    native: Library, pool: Pool, x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    tape = Tape(native, pool)
    out = torch.full((x.shape[0], weight.num_rows), float("nan"))
    rows = Int8Rows.for_weight(weight, max_rows=x.shape[0])
    tape.quantize(x, rows)
    tape.linear(rows, weight, out, bias=bias)
    tape.run(Dims(x.shape[0], 0, 0))
    return out


def round_to_int8(x: torch.Tensor) -> torch.Tensor:
    """Every 32 columns share the scale largest / 127, and levels round half to even; float64."""
    blocks = x.float().view(x.shape[0], -1, 32)
    largest = blocks.abs().amax(dim=2, keepdim=True)
    inverse = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0.0)
    levels = (blocks * inverse).round()
    return (levels.double() * (largest / 127).double()).view(x.shape)


@pytest.mark.parametrize("encoding", QUANTIZED)
@pytest.mark.parametrize("num_tokens", [1, 7, 40])
@pytest.mark.parametrize(("rows", "columns"), [(16, 256), (40, 512), (100, 768)])
def test_products_are_those_of_the_rounded_activations(
    native: Library, pool: Pool, packer: Packer, encoding: str, num_tokens: int, rows: int, columns: int
) -> None:
    """Red if levels of weight and activation meet in another order, or an offset or a half's scale is left out."""
    raw = random_weight(encoding, rows, columns)
    packed = packer.pack(raw, storage=natural_storage(encoding))
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(num_tokens, columns, generator=generator) + 0.7).bfloat16()
    bias = torch.randn(rows, generator=generator)
    expected = round_to_int8(x) @ torch.from_numpy(raw.dequantize()).double().T + bias.double()
    error = (run_int8(native, pool, x, packed, bias).double() - expected).abs().max() / expected.abs().max()
    # scales of the K formats are products, rounded to float16 when packed: 2^-11
    assert error < (1e-3 if encoding.endswith("_K") else 1e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_row_is_bit_identical_alone_and_in_any_batch(
    native: Library, pool: Pool, packer: Packer, storage: str
) -> None:
    """Red if one row count takes another order over the blocks, or scales in another order of multiplications."""
    packed = packer.pack(torch.randn(200, 576, generator=torch.Generator().manual_seed(4)), storage=storage)
    x = torch.randn(450, 576, generator=torch.Generator().manual_seed(5)).bfloat16()
    whole = run_int8(native, pool, x, packed)
    for rows in ROW_COUNTS:
        assert torch.equal(run_int8(native, pool, x[:rows].contiguous(), packed), whole[:rows]), rows
    for row in (7, 191, 192, 449):
        assert torch.equal(run_int8(native, pool, x[row : row + 1].contiguous(), packed), whole[row : row + 1]), row


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (15, 64), (17, 96), (72, 1536)])
def test_odd_shapes(native: Library, pool: Pool, packer: Packer, storage: str, rows: int, columns: int) -> None:
    """Red if the last partial panel, or the scales behind a row of levels, are read from the wrong place."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    packed = packer.pack(weight, storage=storage)
    stored = run_float32(native, pool, packed)
    x = torch.randn(7, columns, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = round_to_int8(x) @ stored.double().T
    assert (run_int8(native, pool, x, packed).double() - expected).abs().max() < 1e-5 * expected.abs().max()


def run_float32(native: Library, pool: Pool, weight: PackedWeight) -> torch.Tensor:
    """The numbers a packed weight stands for: its product with the identity in float32."""
    tape = Tape(native, pool)
    out = torch.empty(weight.num_columns, weight.num_rows)
    tape.linear(torch.eye(weight.num_columns), weight, out)
    tape.run(Dims(weight.num_columns, 0, 0))
    return out.T.contiguous()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 17, 31, 63])
def test_a_bad_number_spoils_its_own_row_only(
    native: Library, pool: Pool, packer: Packer, bad: float, place: int
) -> None:
    """Red if a NaN or an infinity becomes a level, and a row that should fail goes on with made-up numbers."""
    packed = packer.pack(torch.randn(16, 64, generator=torch.Generator().manual_seed(6)), storage="q4")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(7)).bfloat16()
    x[1, place] = bad
    finite = run_int8(native, pool, x, packed).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, True]


def test_a_row_of_zeros_gives_the_bias(native: Library, pool: Pool, packer: Packer) -> None:
    """Red if a block without numbers divides by its scale."""
    packed = packer.pack(torch.randn(16, 64), storage="q8")
    bias = torch.arange(16.0)
    assert torch.equal(run_int8(native, pool, torch.zeros(1, 64).bfloat16(), packed, bias)[0], bias)


def test_refusals(native: Library, pool: Pool, packer: Packer) -> None:
    """Red if int8 is accepted where there are no levels to multiply."""
    plain = packer.pack(torch.randn(16, 64), storage="bf16")
    with pytest.raises(ValueError, match="quantized weight"):
        Int8Rows.for_weight(plain, max_rows=1)
    rows = Int8Rows.for_weight(packer.pack(torch.randn(16, 64), storage="q4"), max_rows=1)
    for other in (
        plain,
        packer.pack(torch.randn(16, 64), storage="q8"),
        packer.pack(torch.randn(16, 96), storage="q4"),
    ):
        with pytest.raises(ValueError, match="another storage or width"):
            Tape(native, pool).linear(rows, other, torch.zeros(1, 16))
