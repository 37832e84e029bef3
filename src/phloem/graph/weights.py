"""Weight recipes: how each parameter of a graph is made from the tensors of a checkpoint, and the loader that does it.

A pass that merges or cuts parameters writes the new recipe; loading follows it tensor by tensor. Work on rows and on
whole blocks of columns is done on the bytes as stored, so a quantized weight stays quantized; where parts of different
encodings are joined, or a cut divides a block, they become float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.kernels.spec import RawWeight, concat

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint, as it is; it must have this shape."""

    name: str
    shape: Shape


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers that the configuration implies, such as rotary frequencies."""

    values: npt.NDArray[np.float32]

    @property
    def shape(self) -> Shape:
        return self.values.shape


@dataclass(frozen=True, eq=False)
class Rows:
    """The given rows of `source`, in that order: a permutation (an index array) or a part (a slice with bounds)."""

    source: WeightRecipe
    index: npt.NDArray[np.intp] | slice

    @property
    def shape(self) -> Shape:
        num_rows = self.source.shape[0]
        kept = len(range(num_rows)[self.index]) if isinstance(self.index, slice) else len(self.index)
        return (kept, *self.source.shape[1:])


@dataclass(frozen=True)
class Concat:
    """Parts joined along their first dimension."""

    parts: tuple[WeightRecipe, ...]

    @property
    def shape(self) -> Shape:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


@dataclass(frozen=True)
class Columns:
    """The given columns of the matrix `source`."""

    source: WeightRecipe
    index: slice

    @property
    def shape(self) -> Shape:
        num_rows, num_columns = self.source.shape
        return num_rows, len(range(num_columns)[self.index])


@dataclass(frozen=True, eq=False)
class Fp8Numbers:
    """The rows of `source` as 8-bit floats (graph/ops/fp8), to be multiplied by its `Fp8Scales`. Made on a device."""

    source: WeightRecipe

    @property
    def shape(self) -> Shape:
        return self.source.shape


@dataclass(frozen=True, eq=False)
class Fp8Scales:
    """The factors of those rows, float32 [rows, 1]."""

    source: WeightRecipe

    @property
    def shape(self) -> Shape:
        return (self.source.shape[0], 1)


WeightRecipe = Stored | Constant | Rows | Columns | Concat | Fp8Numbers | Fp8Scales


def load_raw(recipe: WeightRecipe, checkpoint: Checkpoint) -> RawWeight:
    """Carry out a recipe. ModelError names a tensor that is missing or has another shape."""
    match recipe:
        case Stored(name, shape):
            return _stored(name, shape, checkpoint)
        case Constant(values):
            return RawWeight.from_array(values)
        case Rows(source, index):
            raw = load_raw(source, checkpoint)
            return raw.rows(index) if len(raw.shape) == 2 else RawWeight.from_array(raw.dequantize()[index])
        case Columns(source, index):
            return load_raw(source, checkpoint).columns(index)
        case Concat(parts):
            return _joined([load_raw(part, checkpoint) for part in parts])
        case Fp8Numbers() | Fp8Scales():
            raise AssertionError("8-bit floats are made on the device, from the source's numbers")


def to_torch(raw: RawWeight, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of a weight as a tensor of its shape (a copy)."""
    if raw.encoding == "BF16":
        return torch.from_numpy(raw.data.copy()).view(torch.bfloat16).reshape(raw.shape).to(dtype)
    return torch.from_numpy(np.array(raw.dequantize())).to(dtype)


def sources(recipe: WeightRecipe) -> Iterator[Stored]:
    """The checkpoint tensors a recipe reads."""
    match recipe:
        case Stored():
            yield recipe
        case Rows(source, _) | Columns(source, _) | Fp8Numbers(source) | Fp8Scales(source):
            yield from sources(source)
        case Concat(parts):
            for part in parts:
                yield from sources(part)
        case Constant():
            return


def stored_bytes(recipe: WeightRecipe, checkpoint: Checkpoint) -> int:
    """Bytes of a recipe's tensors as the checkpoint stores them, of a part its share; nothing is read."""
    match recipe:
        case Constant(values):
            return values.nbytes
        case Stored(name, _):
            entry = checkpoint.tensors.entries.get(name)
            return 0 if entry is None else entry.num_bytes
        case Rows(source, _) | Columns(source, _) | Fp8Numbers(source) | Fp8Scales(source):
            return stored_bytes(source, checkpoint) * prod(recipe.shape) // prod(source.shape)
        case Concat(parts):
            return sum(stored_bytes(part, checkpoint) for part in parts)


def _stored(name: str, shape: Shape, checkpoint: Checkpoint) -> RawWeight:
    if name not in checkpoint.tensors:
        raise ModelError(
            f"{checkpoint.path}: tensor {name!r} is missing;"
            " the download is incomplete or the configuration is of another model",
            field=str(checkpoint.path),
        )
    raw = checkpoint.tensors[name]
    if raw.shape != shape:
        raise ModelError(
            f"{checkpoint.path}: tensor {name!r} has shape {raw.shape}, the configuration implies {shape};"
            " configuration and weights are of different models",
            field=str(checkpoint.path),
        )
    return raw


def _joined(parts: list[RawWeight]) -> RawWeight:
    if len({part.encoding for part in parts}) == 1:
        return concat(parts)
    return RawWeight.from_array(np.concatenate([part.dequantize() for part in parts]))
