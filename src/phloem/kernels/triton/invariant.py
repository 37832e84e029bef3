# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Matrix products whose rows do not know each other: the same row gives the same bits in any batch.

cuBLAS chooses by the number of rows how to cut and sum the columns, so a token's result changes in its last bits with
what else is in the step. Here every output is one program's sum over all columns in ascending order, BLOCK_K at a
time, by the tensor cores' 64-row instruction. What does depend on the number of rows is how many outputs a program
makes; that changes no order of sums, and tests/gpu/test_deterministic.py compares all tiles bit for bit. After He et
al. 2025, "Defeating Nondeterminism in LLM Inference".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.fp8 import quantize_rows
from phloem.kernels.triton.launch import Launcher, follow, kind_of, starts_early

BLOCK_K = 64


@dataclass(frozen=True)
class Tile:
    """Outputs of a program, and how it is compiled. `rows` at least 64, so that all use the same instruction.

    Taken where there are at least `least` of it: fewer leave most of a device idle.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    least: int


TILES = (Tile(128, 128, 8, 4, 72), Tile(64, 64, 4, 5, 200), Tile(64, 32, 4, 6, 0))
"""In the order of preference; `least` as measured on an H200 of 132 multiprocessors, between 64 and 2,048 rows."""


def choose_tile(num_rows: int, num_columns: int) -> Tile:
    """The largest tile of which there are enough."""
    fitting = [tile for tile in TILES if tile.rows == TILES[-1].rows or num_rows > tile.rows // 2]
    return next(
        tile
        for tile in fitting
        if triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns) >= tile.least
    )


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    float32_out: bool = False,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """x W^T + b, accumulated in float32; in x's type, or in float32 without rounding in between (logits).

    x [T, K] (rows may be strided) and weight [N, K] of one type; bias [N].
    """
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32 if float32_out else x.dtype, device=x.device)
    _multiply(x, weight, y, bias=bias, scales=None, tile=tile)
    return y


def linear_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, tile: Tile | None = None
) -> Tensor:
    """x (W * scale)^T + b in x's type: weight [N, K] e4m3, scale [N, 1] float32; x is quantized row by row."""
    numbers, x_scale = quantize_rows(x)
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    _multiply(numbers, weight, y, bias=bias, scales=(x_scale, scale), tile=tile)
    return y


def _multiply(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    bias: Tensor | None,
    scales: tuple[Tensor, Tensor] | None,
    tile: Tile | None,
) -> None:
    """Fill y [T, N]."""
    (num_rows, num_columns), depth = y.shape, x.shape[1]
    if not num_rows:
        return
    assert x.stride(1) == 1, "the numbers of a row lie side by side"
    assert weight.is_contiguous(), "the weight is [N, K] in one piece"
    tile = tile or choose_tile(num_rows, num_columns)
    tensors, sizes = (x, weight, y, bias, *(scales or (None, None))), (num_columns, depth, x.stride(0))
    early = starts_early(x.device)
    _launch(
        (triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns), 1, 1),
        *tensors, num_rows, *sizes,
        kind=kind_of(*tensors, *sizes),
        constants={
            "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": BLOCK_K, "WHOLE": depth % BLOCK_K == 0,
            "EARLY": early,
        },
        num_warps=tile.num_warps, num_stages=tile.num_stages, early=early,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _multiply_kernel(
    x, weight, y, bias, x_scale, w_scale, num_rows, num_columns, depth, x_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Neighbouring programs take the same columns, whose weights then come from memory once and from L2 after that."""
    follow(EARLY)
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    row = tl.program_id(0) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) // row_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    has_row, has_column = row < num_rows, column < num_columns
    inner = tl.arange(0, BLOCK_K)
    x_at = x + row.to(tl.int64)[:, None] * x_stride + inner[None, :]
    w_at = weight + tl.where(has_column, column, 0).to(tl.int64)[:, None] * depth + inner[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in tl.range(0, depth, BLOCK_K):
        if WHOLE:
            x_tile, w_tile = tl.load(x_at, mask=has_row[:, None], other=0.0), tl.load(w_at)
        else:
            held = (begin + inner < depth)[None, :]
            x_tile = tl.load(x_at, mask=has_row[:, None] & held, other=0.0)
            w_tile = tl.load(w_at, mask=held, other=0.0)
        total = tl.dot(x_tile, w_tile.T, total, input_precision="ieee")
        x_at += BLOCK_K
        w_at += BLOCK_K
    if x_scale is not None:
        total *= tl.load(x_scale + row, mask=has_row, other=0.0)[:, None]
        total *= tl.load(w_scale + column, mask=has_column, other=0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + column, mask=has_column, other=0.0).to(tl.float32)[None, :]
    where = y + row.to(tl.int64)[:, None] * num_columns + column[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=has_row[:, None] & has_column[None, :])


_launch = Launcher(_multiply_kernel)
