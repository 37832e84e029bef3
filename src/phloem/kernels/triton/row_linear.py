# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Matrix products of a row or two with what surrounds them: such a step is bound by launches and the bytes of weights.

    norm_linear         rms_norm, then the product                     q, k, v
    norm_gated_linear   rms_norm, the product, silu(gate) * up         gate and up
    linear_add          the product, added to the residual stream      o; down

A program takes a few outputs of one row and walks its inputs in blocks, each block of weights loaded before the one at
hand is used. The first block is loaded before the kernel waits for its predecessor (programmatic dependent launch):
weights are nobody's result, so they stream while the kernel before drains. RMSNorm's scale is one number a row, so it
is applied to the finished sums; its sum of squares is taken on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.launch import Launcher, starts_early

ONE_WAVE = 660  # programs of four warps and 96 registers a thread that 132 multiprocessors hold at once
IN_THREAD: tl.constexpr = tl.constexpr(8)  # inputs a thread takes at once: 16 bytes of weights


@dataclass(frozen=True)
class RowTiling:
    """A program's outputs (of each half, where it gates), the inputs of a block, and its warps."""

    block_n: int
    block_k: int
    num_warps: int


def norm_linear(x: Tensor, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rms_norm(x) W^T + b in weight's type: x [T, K] float32, gain [K], weight [N, K], bias [N] -> [T, N]."""
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=weight.dtype, device=x.device)
    _launch(x, weight, y, gain=gain, eps=eps, bias=bias)
    return y


def norm_gated_linear(x: Tensor, gain: Tensor, eps: float, weight: Tensor) -> Tensor:
    """silu(gate) * up of (gate, up) = rms_norm(x) W^T, in weight's type: weight [2F, K] -> [T, F]."""
    y = torch.empty((x.shape[0], weight.shape[0] // 2), dtype=weight.dtype, device=x.device)
    _launch(x, weight, y, gain=gain, eps=eps, gated=True)
    return y


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """residual + x W^T + b in float32: x [T, K], weight [N, K], residual [T, N] float32 -> [T, N]."""
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
    _launch(x, weight, y, bias=bias, residual=residual)
    return y


def choose_tiling(num_outputs: int, num_inputs: int, *, gated: bool) -> RowTiling:
    """Fixed by shape; `python -m bench.gpu_rows rows` prints the table of variants behind it.

    Few outputs want small programs so that all multiprocessors have one, many want them to fit in one wave.
    """
    if gated:
        block_n, block_k, num_warps = 4, 1024, 4
    elif num_outputs <= 2048:
        block_n, block_k, num_warps = 4, 2048, 8
    elif num_outputs <= 8 * ONE_WAVE:
        block_n, block_k, num_warps = 8, 1024, 4
    else:
        block_n, block_k, num_warps = 16, 512, 4
    return RowTiling(block_n, min(block_k, max(IN_THREAD.value, triton.next_power_of_2(num_inputs))), num_warps)


def _launch(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    gain: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    tiling: RowTiling | None = None,
) -> None:
    num_rows, num_outputs = y.shape
    num_inputs = weight.shape[1]
    each = [tensor for tensor in (x, weight, gain, bias, residual) if tensor is not None]
    assert all(tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 for tensor in each), "rows side by side, aligned"
    if not num_rows:
        return
    tiling = tiling or choose_tiling(num_outputs, num_inputs, gated=gated)
    early, two = starts_early(x.device), num_rows % 2 == 0
    _launch_product(
        (num_rows // 2 if two else num_rows, triton.cdiv(num_outputs, tiling.block_n), 1),
        y, x, weight, gain, bias, residual, num_outputs, eps,
        kind=(x.device.index, x.dtype, weight.dtype, y.dtype, *map(_type_of, (gain, bias, residual))),
        constants={
            "NUM_INPUTS": num_inputs, "TWO": two, "BLOCK_N": tiling.block_n, "BLOCK_K": tiling.block_k,
            "WHOLE": num_outputs % tiling.block_n == 0 and num_inputs % tiling.block_k == 0,
            "NORMED": gain is not None, "GATED": gated, "BIASED": bias is not None, "ADDS": residual is not None,
            "EARLY": early,
        },
        num_warps=tiling.num_warps, early=early,
    )  # fmt: skip


def _type_of(tensor: Tensor | None) -> torch.dtype | None:
    return None if tensor is None else tensor.dtype


@triton.jit
def _weights(weight, lines, inputs, start, num_lines, NUM_INPUTS: tl.constexpr, WHOLE: tl.constexpr):
    """The block of the rows `lines` of the weights from input `start` on."""
    where = weight + lines[:, None].to(tl.int64) * NUM_INPUTS + (start + inputs)[None, :]
    if WHOLE:
        block = tl.load(where)
    else:
        block = tl.load(where, mask=(lines < num_lines)[:, None] & (start + inputs < NUM_INPUTS)[None, :], other=0.0)
    return block


@triton.jit
def _multiply(sums, squares, block, x, gain, inputs, start, NUM_INPUTS: tl.constexpr, NORMED: tl.constexpr):
    """(sums, squares) with the inputs from `start` on. What a thread holds is added up, the rest waits for the end."""
    held = start + inputs < NUM_INPUTS
    value = tl.load(x + start + inputs, mask=held, other=0.0).to(tl.float32)
    if NORMED:
        squares += value * value
        value *= tl.load(gain + start + inputs, mask=held, other=0.0).to(tl.float32)
    products = block.to(tl.float32) * value[None, :]
    return sums + tl.sum(tl.reshape(products, [sums.shape[0], sums.shape[1], IN_THREAD]), 2), squares


@triton.jit
def _finish(
    y, sums, squares, added, output, num_outputs, eps,
    NUM_INPUTS: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Store a row's outputs."""
    result = tl.sum(sums, 1)
    if NORMED:
        result *= tl.rsqrt(tl.sum(squares, 0) / NUM_INPUTS + eps)
    if GATED:
        gate, up = tl.split(tl.reshape(result, [result.shape[0] // 2, 2]))
        result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y + output, (result + added).to(y.dtype.element_ty), mask=output < num_outputs)


@triton.jit(do_not_specialize=["num_outputs"])
def _product(
    y, x, weight, gain, bias, residual, num_outputs, eps,
    NUM_INPUTS: tl.constexpr, TWO: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr,
    NORMED: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr, ADDS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row, or TWO of them, which then read the weights once."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    PARTS: tl.constexpr = 2 if GATED else 1  # gate and up of an output lie side by side in the block
    num_lines = PARTS * num_outputs
    row = tl.program_id(0).to(tl.int64) * (2 if TWO else 1)
    output, inputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    part = tl.arange(0, PARTS * BLOCK_N)
    lines = tl.program_id(1) * BLOCK_N + part // PARTS
    lines = tl.where(lines < num_outputs, lines + part % PARTS * num_outputs, num_lines)
    block = _weights(weight, lines, inputs, 0, num_lines, NUM_INPUTS, WHOLE)
    added = tl.zeros([BLOCK_N], tl.float32)
    if BIASED:
        added += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    x += row * NUM_INPUTS
    y += row * num_outputs
    added_too = added
    if ADDS:
        residual += row * num_outputs + output
        added += tl.load(residual, mask=output < num_outputs, other=0.0)
        if TWO:
            added_too += tl.load(residual + num_outputs, mask=output < num_outputs, other=0.0)
    sums, squares = tl.zeros([PARTS * BLOCK_N, BLOCK_K // IN_THREAD], tl.float32), tl.zeros([BLOCK_K], tl.float32)
    sums_too, squares_too = sums * 1.0, squares * 1.0
    for start in range(0, NUM_INPUTS - BLOCK_K, BLOCK_K):
        following = _weights(weight, lines, inputs, start + BLOCK_K, num_lines, NUM_INPUTS, WHOLE)
        sums, squares = _multiply(sums, squares, block, x, gain, inputs, start, NUM_INPUTS, NORMED)
        if TWO:
            sums_too, squares_too = _multiply(
                sums_too, squares_too, block, x + NUM_INPUTS, gain, inputs, start, NUM_INPUTS, NORMED
            )
        block = following
    LAST: tl.constexpr = (NUM_INPUTS - 1) // BLOCK_K * BLOCK_K
    sums, squares = _multiply(sums, squares, block, x, gain, inputs, LAST, NUM_INPUTS, NORMED)
    if TWO:
        sums_too, squares_too = _multiply(
            sums_too, squares_too, block, x + NUM_INPUTS, gain, inputs, LAST, NUM_INPUTS, NORMED
        )
    _finish(y, sums, squares, added, output, num_outputs, eps, NUM_INPUTS, NORMED, GATED)
    if TWO:
        _finish(y + num_outputs, sums_too, squares_too, added_too, output, num_outputs, eps, NUM_INPUTS, NORMED, GATED)


_launch_product = Launcher(_product)
