# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Matrix products of tens to hundreds of rows that start while their predecessor drains, with SwiGLU if it follows.

At these sizes a product takes 5 to 10 us, of which the launch and the first read of the weights are a good part. With
programmatic dependent launch a program is resident when its predecessor ends, and has asked for its weights already:
they are nobody's result, so it prefetches them into L2 before it waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from phloem.kernels.triton.launch import Launcher, starts_early


@dataclass(frozen=True)
class Tile:
    """Rows and outputs of a program (of each half, where it gates), inputs of a block, and how it is compiled."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


def matmul(x: Tensor, weight: Tensor, *, gated: bool, tile: Tile, prefetches: bool = True) -> Tensor:
    """x W^T, or silu(gate) * up of its halves, in x's type: x [T, K], weight [N, K] or [2F, K] -> [T, N] or [T, F]."""
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0] // (2 if gated else 1)
    y = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    early = starts_early(x.device)
    grid = (triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs), 1, 1)
    _launch(
        grid,
        y, TensorDescriptor.from_tensor(x, [tile.rows, tile.inputs]), weight,
        TensorDescriptor.from_tensor(weight, [tile.outputs, tile.inputs]), num_rows, num_outputs, num_inputs,
        kind=(x.device.index, x.dtype),
        constants={
            "BLOCK_M": tile.rows, "BLOCK_N": tile.outputs, "BLOCK_K": tile.inputs,
            "GATED": gated, "EARLY": early, "PREFETCHES": prefetches and early,
        },
        num_warps=tile.num_warps, num_stages=tile.num_stages, early=early,
    )  # fmt: skip
    return y


@triton.jit
def _prefetch(weight, first, stop, num_inputs, BLOCK_N: tl.constexpr):
    """Ask for the rows first .. first + BLOCK_N of the weights, line by line of 128 bytes."""
    LINE: tl.constexpr = 64  # numbers of two bytes
    rows = tl.minimum(first + tl.arange(0, BLOCK_N), stop - 1)
    for start in range(0, num_inputs, 16 * LINE):
        columns = tl.minimum(start + tl.arange(0, 16) * LINE, num_inputs - 1)
        where = weight + rows[:, None].to(tl.int64) * num_inputs + columns[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [where], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit(do_not_specialize=["num_rows", "num_outputs", "num_inputs"])
def _matmul(
    y, x, weight, weight_blocks, num_rows, num_outputs, num_inputs,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GATED: tl.constexpr, EARLY: tl.constexpr, PREFETCHES: tl.constexpr,
):  # fmt: skip
    """Neighbouring programs take the same outputs, whose weights come from memory once and from L2 after that."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    row_tiles = tl.cdiv(num_rows, BLOCK_M)
    first_row, first = tl.program_id(0) % row_tiles * BLOCK_M, tl.program_id(0) // row_tiles * BLOCK_N
    if PREFETCHES:
        if first_row == 0:
            _prefetch(weight, first, num_outputs, num_inputs, BLOCK_N)
            if GATED:
                _prefetch(weight, num_outputs + first, 2 * num_outputs, num_inputs, BLOCK_N)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if GATED:
        up_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, num_inputs, BLOCK_K):
        x_tile = x.load([first_row, start])
        sums = tl.dot(x_tile, weight_blocks.load([first, start]).T, sums, input_precision="ieee")
        if GATED:
            up_tile = weight_blocks.load([num_outputs + first, start])
            up_sums = tl.dot(x_tile, up_tile.T, up_sums, input_precision="ieee")
    if GATED:
        sums = sums / (1.0 + tl.exp(-sums)) * up_sums
    row, output = first_row + tl.arange(0, BLOCK_M), first + tl.arange(0, BLOCK_N)
    where = y + row.to(tl.int64)[:, None] * num_outputs + output[None, :]
    tl.store(where, sums.to(y.dtype.element_ty), mask=(row < num_rows)[:, None] & (output < num_outputs)[None, :])


_launch = Launcher(_matmul)
