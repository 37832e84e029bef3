# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Launching a kernel without paying triton's look at every argument again: eager steps are bound by it.

triton derives from all arguments which compiled form to take, about 40 us a launch. Here the caller says what decides:
the constants, and a `kind` that covers whatever else triton specializes on (types, strides, alignment of pointers). All
other integers must be listed in do_not_specialize.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

Grid = tuple[int, int, int]


class Launcher:
    """One kernel and its compiled forms by constants and kind. Its parameters: tensors and numbers, then constexprs."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[Hashable, Any] = {}

    def __call__(
        self,
        grid: Grid,
        *arguments: object,
        kind: Hashable,
        constants: Mapping[str, object],
        num_warps: int,
        num_stages: int = 1,
        early: bool = False,
    ) -> None:
        """Launch on the current stream; `early`: programmatic dependent launch, which the kernel then waits for."""
        key = (kind, *constants.values(), num_warps, num_stages, early)
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*arguments, *constants.values())
            return
        names = list(constants)
        assert list(self._kernel.arg_names[len(arguments) :]) == names, "constants come in the kernel's order"
        options = {"num_warps": num_warps, "num_stages": num_stages, "launch_pdl": early}
        self._compiled[key] = self._kernel[grid](*arguments, **constants, **options)  # None from the interpreter


def kind_of(*arguments: torch.Tensor | int | None) -> Hashable:
    """A kind for these arguments of a kernel: types and alignments of tensors, integers as they are."""
    return tuple(
        (each.dtype, each.data_ptr() % 16, each.device.index) if isinstance(each, torch.Tensor) else each
        for each in arguments
    )


@cache
def starts_early(device: torch.device) -> bool:
    """Whether kernels may start while the one before drains: programmatic dependent launch, compute capability 9 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def follow(EARLY: tl.constexpr):
    """Wait for what the kernel before has written (programmatic dependent launch).

    The next kernel is not told to start up. Where rope told decode attention, whose programs stay for the whole launch,
    W1a was slower; the suspicion, not isolated, is that they then spread unevenly over the multiprocessors.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
