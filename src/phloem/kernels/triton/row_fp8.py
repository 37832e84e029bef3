# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""One row times 8-bit weights: bound by the bytes of the weights, which libraries read at half the speed there is.

As in row_linear.py a program takes a few outputs and walks the inputs in blocks, each block of weights loaded before
the one at hand is used, the first before the kernel waits for its predecessor (programmatic dependent launch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton.launch import Launcher, kind_of, starts_early

IN_THREAD: tl.constexpr = tl.constexpr(16)  # inputs a thread takes at once: 16 bytes of weights


@dataclass(frozen=True)
class RowTiling:
    """A program's outputs, the inputs of a block, and its warps."""

    block_n: int
    block_k: int
    num_warps: int


def choose_tiling(num_outputs: int, num_inputs: int) -> RowTiling:
    """Fixed by shape: a block that the inputs are whole ones of, and small programs where there are few outputs."""
    block_k = 2048 if num_inputs % 2048 == 0 else 1024
    block_n = 4 if num_outputs <= 2048 else 8
    return RowTiling(block_n, min(block_k, max(IN_THREAD.value, triton.next_power_of_2(num_inputs))), 4)


def multiply_row(
    numbers: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    tiling: RowTiling | None = None,
) -> Tensor:
    """[1, N]: numbers [1, K] and weight [N, K] e4m3, their scales [1, 1] and [N, 1] float32, bias [N]; float32 sums."""
    num_outputs, num_inputs = weight.shape
    tiling = tiling or choose_tiling(num_outputs, num_inputs)
    y = torch.empty((1, num_outputs), dtype=dtype, device=weight.device)
    tensors, early = (y, numbers, row_scale, weight, scale, bias), starts_early(weight.device)
    _launch(
        (triton.cdiv(num_outputs, tiling.block_n), 1, 1), *tensors, num_outputs,
        kind=kind_of(*tensors),
        constants={
            "NUM_INPUTS": num_inputs, "BLOCK_N": tiling.block_n, "BLOCK_K": tiling.block_k,
            "WHOLE": num_outputs % tiling.block_n == 0 and num_inputs % tiling.block_k == 0, "EARLY": early,
        },
        num_warps=tiling.num_warps, early=early,
    )  # fmt: skip
    return y


@triton.jit
def _weights(weight, output, inputs, start, num_outputs, NUM_INPUTS: tl.constexpr, WHOLE: tl.constexpr):
    """The block of the rows `output` of the weights from input `start` on."""
    where = weight + output[:, None].to(tl.int64) * NUM_INPUTS + (start + inputs)[None, :]
    if WHOLE:
        block = tl.load(where)
    else:
        block = tl.load(where, mask=(output < num_outputs)[:, None] & (start + inputs < NUM_INPUTS)[None, :], other=0.0)
    return block


@triton.jit
def _multiply(sums, block, numbers, inputs, start, NUM_INPUTS: tl.constexpr):
    """`sums` with the inputs from `start` on. What a thread holds is added up, the rest waits for the end."""
    value = tl.load(numbers + start + inputs, mask=start + inputs < NUM_INPUTS, other=0.0).to(tl.float32)
    products = block.to(tl.float32) * value[None, :]
    return sums + tl.sum(tl.reshape(products, [sums.shape[0], sums.shape[1], IN_THREAD]), 2)


@triton.jit(do_not_specialize=["num_outputs"])
def _multiply_row(
    y, numbers, row_scale, weight, scale, bias, num_outputs,
    NUM_INPUTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    output, inputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    block = _weights(weight, output, inputs, 0, num_outputs, NUM_INPUTS, WHOLE)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    sums = tl.zeros([BLOCK_N, BLOCK_K // IN_THREAD], tl.float32)
    for start in range(0, NUM_INPUTS - BLOCK_K, BLOCK_K):
        following = _weights(weight, output, inputs, start + BLOCK_K, num_outputs, NUM_INPUTS, WHOLE)
        sums = _multiply(sums, block, numbers, inputs, start, NUM_INPUTS)
        block = following
    sums = _multiply(sums, block, numbers, inputs, (NUM_INPUTS - 1) // BLOCK_K * BLOCK_K, NUM_INPUTS)
    exists = output < num_outputs
    result = tl.sum(sums, 1) * tl.load(row_scale) * tl.load(scale + output, mask=exists, other=0.0)
    if bias is not None:
        result += tl.load(bias + output, mask=exists, other=0.0).to(tl.float32)
    tl.store(y + output, result.to(y.dtype.element_ty), mask=exists)


_launch = Launcher(_multiply_row)
