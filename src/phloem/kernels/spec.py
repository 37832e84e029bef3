"""What kernels are given and what they ask for: raw weights, requirements, implementations. Values only, no torch.

A `RawWeight` is a checkpoint tensor in the bytes it was stored in. Row-wise work (merging q, k and v, permuting rows,
slicing) happens on it without leaving the quantized form, because every ggml block lies inside one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from phloem.kernels import ggml

ENCODINGS = tuple(ggml.FORMATS)


@dataclass(frozen=True)
class RawWeight:
    """A tensor as the checkpoint holds it.

    `encoding` is a ggml type name (see ENCODINGS); `shape` the logical shape in torch order, (rows N, columns K) for a
    matrix; `data` uint8 [N, bytes_per_row], C order, often a view of a memory map (a 1-D tensor has N = 1).
    """

    encoding: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.encoding not in ggml.FORMATS:
            raise ValueError(f"unknown encoding {self.encoding!r}; known: {', '.join(ENCODINGS)}")
        expected = (self.num_rows, ggml.bytes_per_row(self.encoding, self.num_columns))
        if self.data.dtype != np.uint8 or self.data.shape != expected:
            raise ValueError(
                f"{self.encoding} of shape {self.shape} needs uint8 {expected}, not {self.data.dtype} {self.data.shape}"
            )

    @property
    def num_columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def num_rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        return int(self.data.nbytes)

    @staticmethod
    def from_array(array: npt.NDArray[np.float32]) -> RawWeight:
        """A float32 array as a weight of encoding F32 (a view where the array is contiguous)."""
        array = np.ascontiguousarray(array, dtype=np.float32)
        columns = array.shape[-1] if array.ndim else 1
        return RawWeight("F32", tuple(array.shape), array.reshape(-1, columns).view(np.uint8))

    def rows(self, index: npt.NDArray[np.integer] | slice | Sequence[int]) -> RawWeight:
        """The matrix of the given rows, in that order: a gather, a permutation or a slice (a slice stays a view)."""
        if len(self.shape) != 2:
            raise ValueError(f"rows() takes a matrix, not shape {self.shape}")
        data = self.data[index] if isinstance(index, slice) else self.data[np.asarray(index)]
        return RawWeight(self.encoding, (data.shape[0], self.num_columns), data)

    def columns(self, index: slice) -> RawWeight:
        """The matrix of a range of columns: as stored where it begins and ends between blocks, else as float32."""
        start, stop, _ = index.indices(self.num_columns)
        block = ggml.FORMATS[self.encoding]
        if start % block.numbers or stop % block.numbers:
            return RawWeight.from_array(self.dequantize()[:, start:stop])
        data = self.data[:, start // block.numbers * block.bytes : stop // block.numbers * block.bytes]
        return RawWeight(self.encoding, (self.num_rows, stop - start), np.ascontiguousarray(data))

    def dequantize(self) -> npt.NDArray[np.float32]:
        """float32 array of `shape`."""
        return ggml.decode_rows(self.encoding, self.data).reshape(self.shape)


def dequantize(weight: RawWeight) -> npt.NDArray[np.float32]:
    """The numbers of a weight, float32 of its shape."""
    return weight.dequantize()


def concat(weights: Sequence[RawWeight]) -> RawWeight:
    """Matrices (or vectors) of one encoding joined along their first dimension, still in their stored bytes."""
    first = weights[0]
    if any(weight.encoding != first.encoding for weight in weights):
        raise ValueError(f"concat() takes one encoding, not {sorted({weight.encoding for weight in weights})}")
    if len(first.shape) == 1:
        data = np.concatenate([weight.data for weight in weights], axis=1)
        return RawWeight(first.encoding, (sum(weight.shape[0] for weight in weights),), data)
    if any(weight.shape[1:] != first.shape[1:] for weight in weights):
        raise ValueError(f"concat() takes equal columns, not {[weight.shape for weight in weights]}")
    rows = sum(weight.shape[0] for weight in weights)
    return RawWeight(first.encoding, (rows, *first.shape[1:]), np.concatenate([weight.data for weight in weights]))


@dataclass(frozen=True)
class Machine:
    """What the host offers: `capabilities` such as "native-library", "avx512_bf16", "amx_bf16", "cuda"."""

    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Call:
    """One use of an op: the activation type, the storage of its weight or of the cache it touches, and named sizes."""

    op: str
    dtype: str  # "bfloat16" or "float32"
    storage: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    batch_invariant: bool = False  # a token's result must not depend, in any bit, on what else is in the call


@dataclass(frozen=True)
class Requirement:
    """One condition, with the sentence that explains a refusal ("needs AVX-512 with BF16")."""

    text: str
    holds: Callable[[Machine, Call], bool]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op. Higher priority wins among those whose requirements all hold."""

    op: str
    name: str
    requirements: tuple[Requirement, ...] = ()
    priority: int = 0

    def refusals(self, machine: Machine, call: Call) -> tuple[str, ...]:
        """Why it cannot serve this call; empty if it can."""
        return tuple(need.text for need in self.requirements if not need.holds(machine, call))


def needs_capability(name: str, text: str) -> Requirement:
    return Requirement(text, lambda machine, call: name in machine.capabilities)


def needs_dtype(*dtypes: str) -> Requirement:
    return Requirement(f"takes activations in {' or '.join(dtypes)}", lambda machine, call: call.dtype in dtypes)


def needs_storage(*storages: str) -> Requirement:
    return Requirement(
        f"takes weights stored as {' or '.join(storages)}", lambda machine, call: call.storage in storages
    )


def varies_with_the_batch() -> Requirement:
    """For implementations that sum in another order for another number of tokens or rows."""
    return Requirement("its sums depend on what else is in the batch", lambda machine, call: not call.batch_invariant)


def needs_multiple(size: str, of: int) -> Requirement:
    return Requirement(
        f"needs {size} to be a multiple of {of}", lambda machine, call: call.sizes.get(size, 0) % of == 0
    )


def needs_at_most(size: str, most: int) -> Requirement:
    return Requirement(f"needs {size} of at most {most}", lambda machine, call: call.sizes.get(size, 0) <= most)
