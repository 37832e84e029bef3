"""What an op is: one object that holds everything anybody may rely on.

    signature + reference (plain torch)   what it computes
    shape rule                            what it returns, checked by the verifier after every pass
    examples                              inputs for the generic test of every implementation
    tolerance                             how far an implementation may be from the reference, per activation type

Calling an op on tensors runs its reference; calling it on proxies (while a model is traced) records one node whose
target is the op itself and whose arguments are complete and positional.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import fx

Dim = int | str  # a number, or the name of a size that each step brings: T tokens, L logit rows, R rows, P pages ...
Dtype = Literal["act", "float32", "int32", "weight"]  # act: the activation type; weight: whatever it is stored in

Example = tuple[Any, ...]


class ShapeError(Exception):
    """The inputs of an op do not fit together."""


@dataclass(frozen=True)
class Spec:
    """Shape and type of a value, before any tensor exists."""

    shape: tuple[Dim, ...]
    dtype: Dtype = "act"

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False)
class Op:
    """One entry of the vocabulary; see the top of this file. Immutable, compared by identity."""

    name: str
    reference: Callable[..., Any]
    shape: Callable[..., Spec | tuple[Spec, ...]]
    examples: Callable[[torch.Generator, torch.dtype], Iterator[Example]]
    tolerance: Mapping[torch.dtype, float] = field(
        default_factory=lambda: {torch.float32: 1e-5, torch.bfloat16: 2e-2}
    )  # largest absolute error over the largest absolute value of the reference

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.reference)

    @property
    def __name__(self) -> str:  # fx prints node targets by this
        return self.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for arg in bound.args:
            if isinstance(arg, fx.Proxy):
                return arg.tracer.create_proxy("call_function", self, bound.args, {}, name=self.name)
        return self.reference(*bound.args)


def same(what: str, *dims: Dim) -> None:
    """Refuse dims that differ; for shape rules."""
    if len(set(dims)) > 1:
        raise ShapeError(f"{what} differ: {', '.join(map(str, dims))}")


def rank(what: str, spec: Spec, expected: int) -> tuple[Dim, ...]:
    """The shape of a value that must have `expected` dims; for shape rules."""
    if len(spec.shape) != expected:
        raise ShapeError(f"{what} is {spec}, expected {expected} dims")
    return spec.shape


def static(what: str, dim: Dim) -> int:
    """A dim that must be known before the step; for shape rules."""
    if isinstance(dim, str):
        raise ShapeError(f"{what} must be a number, not {dim}")
    return dim
