"""GGUF: the header parsed fast and suspiciously, the tensors left where they are.

Layout (ggml's gguf specification, versions 2 and 3, little-endian): magic, version, number of tensors, number of
metadata entries, the entries, the tensor table, padding to the alignment, tensor data. Nothing read from the file is
trusted: each count is checked against the bytes that are left before anything is allocated or looped over.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.checkpoint import Checkpoint, Entry, LazyTensors, broken
from phloem.kernels import ggml
from phloem.kernels.spec import ENCODINGS, RawWeight

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_KEY_CHARS = 256
MAX_NESTING = 4
MAX_ENTRIES = 1 << 24  # of a metadata array; the largest vocabularies have a few hundred thousand
BIG_ARRAY = 4096  # entries; longer metadata arrays (vocabulary, merges, scores) stay out of a checkpoint's config

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `shape` in torch order, `offset` from the start of the file, both in bounds."""

    encoding: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (strings as str, arrays as lists) and the tensor table."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> GgufHeader:
    """Parse and check the header of the GGUF file at `path`. ModelError on anything that is not as it should be."""
    return _parse(path, _map(path))


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in the GGUF file at `path`; tensors are views of its memory map."""
    mapped = _map(path)
    header = _parse(path, mapped)
    contents = np.frombuffer(mapped, np.uint8)
    config = {key: value for key, value in header.metadata.items() if not _is_big(value)}
    tensors = {
        name: Entry(info.encoding, info.num_bytes, partial(_view, contents, info))
        for name, info in header.tensors.items()
    }
    return Checkpoint(path=path, kind="gguf", config=config, tensors=LazyTensors(tensors))


def _is_big(value: Any) -> bool:
    return isinstance(value, list) and len(value) > BIG_ARRAY


def _view(contents: npt.NDArray[np.uint8], info: TensorInfo) -> RawWeight:
    rows = contents[info.offset : info.offset + info.num_bytes].reshape(prod(info.shape[:-1]), -1)
    return RawWeight(info.encoding, info.shape, rows)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise broken(path, "the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})", "check the path and its permissions") from error


def _parse(path: Path, mapped: mmap.mmap) -> GgufHeader:
    reader = _Reader(path, mapped)
    num_tensors, num_entries = _preamble(reader)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = reader.string("a metadata key")
        if len(key) > MAX_KEY_CHARS:
            raise reader.corrupt(f"a metadata key has {len(key)} characters, more than {MAX_KEY_CHARS}")
        if key in metadata:
            raise reader.corrupt(f"metadata key {key!r} appears twice")
        metadata[key] = reader.value(key)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise reader.corrupt(f"general.alignment is {alignment!r}, not a power of two")
    table = [_tensor_entry(reader) for _ in range(num_tensors)]
    start = -(-reader.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, encoding, shape, offset in table:
        if name in tensors:
            raise reader.corrupt(f"tensor {name!r} appears twice")
        if offset % alignment:
            raise reader.corrupt(f"tensor {name!r} does not start on a multiple of {alignment} bytes")
        tensors[name] = _checked(reader, name, encoding, shape, start + offset)
    return GgufHeader(metadata, tensors)


def _preamble(reader: _Reader) -> tuple[int, int]:
    magic = reader.take(4, "the magic number")
    if magic != MAGIC:
        raise broken(reader.path, f"not a GGUF file (it starts with {magic!r})", "give a .gguf file")
    (version,) = reader.unpack("<I", "the version")
    if version not in VERSIONS:
        big_endian = version and not version & 0xFFFF
        what = "a big-endian file" if big_endian else f"version {version}"
        raise broken(reader.path, f"GGUF {what} is not supported", "convert it again with a current llama.cpp")
    num_tensors, num_entries = reader.unpack("<QQ", "the counts")
    reader.expect(num_tensors, 24, "tensors")
    reader.expect(num_entries, 13, "metadata entries")
    return num_tensors, num_entries


def _tensor_entry(reader: _Reader) -> tuple[str, str, tuple[int, ...], int]:
    name = reader.string("a tensor name")
    (num_dims,) = reader.unpack("<I", name)
    if not 1 <= num_dims <= MAX_DIMS:
        raise reader.corrupt(f"tensor {name!r} has {num_dims} dimensions")
    *dims, type_id, offset = reader.unpack(f"<{num_dims}QIQ", name)
    encoding = TENSOR_TYPES.get(type_id)
    if encoding is None:
        raise reader.corrupt(f"tensor {name!r} is of the unknown type {type_id}")
    if encoding not in ENCODINGS:
        problem = f"tensor {name!r} is stored as {encoding}, which is not supported"
        raise broken(reader.path, problem, f"use a file quantized to one of {', '.join(ENCODINGS)}")
    return name, encoding, tuple(reversed(dims)), offset


def _checked(reader: _Reader, name: str, encoding: str, shape: tuple[int, ...], offset: int) -> TensorInfo:
    if not all(shape):
        raise reader.corrupt(f"tensor {name!r} has the shape {shape}")
    if shape[-1] % ggml.FORMATS[encoding].numbers:
        raise reader.corrupt(f"rows of tensor {name!r} ({shape[-1]} numbers) do not fill whole {encoding} blocks")
    num_bytes = prod(shape[:-1]) * ggml.bytes_per_row(encoding, shape[-1])
    if offset + num_bytes > reader.size:
        missing = offset + num_bytes - reader.size
        problem = f"truncated: tensor {name!r} ends {missing} bytes beyond the end of the file"
        raise broken(reader.path, problem, "download it again")
    return TensorInfo(encoding, shape, offset, num_bytes)


class _Reader:
    """A cursor over the map that refuses to pass its end."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path, self.mapped = path, mapped
        self.position, self.size = 0, len(mapped)

    def corrupt(self, problem: str) -> ModelError:
        return broken(self.path, f"corrupt GGUF: {problem}")

    def truncated(self, reading: str) -> ModelError:
        return broken(self.path, f"truncated or corrupt: the file ends while reading {reading}", "download it again")

    def expect(self, count: int, bytes_each: int, what: str) -> None:
        """Refuse a count of things that the rest of the file has no room for."""
        if count * bytes_each > self.size - self.position or count > MAX_ENTRIES:
            raise self.corrupt(f"it announces {count} {what}, more than it can have")

    def take(self, num_bytes: int, reading: str) -> bytes:
        end = self.position + num_bytes
        if end > self.size:
            raise self.truncated(reading)
        taken = self.mapped[self.position : end]
        self.position = end
        return taken

    def unpack(self, layout: str, reading: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout), reading))

    def string(self, reading: str) -> str:
        (num_bytes,) = self.unpack("<Q", reading)
        return self.take(num_bytes, reading).decode("utf-8", "replace")

    def value(self, key: str) -> Any:
        (type_id,) = self.unpack("<I", key)
        return self._typed(type_id, key, MAX_NESTING)

    def _typed(self, type_id: int, key: str, nesting: int) -> Any:
        if type_id == STRING:
            return self.string(key)
        if type_id == ARRAY:
            return self._array(key, nesting)
        return self._numbers(type_id, 1, key)[0]

    def _array(self, key: str, nesting: int) -> list[Any]:
        type_id, count = self.unpack("<IQ", key)
        if type_id == STRING:
            self.expect(count, 8, f"strings in {key!r}")
            return self._strings(count, key)
        if type_id == ARRAY:
            self.expect(count, 12, f"arrays in {key!r}")
            if not nesting:
                raise self.corrupt(f"{key!r} nests arrays too deeply")
            return [self._array(key, nesting - 1) for _ in range(count)]
        return self._numbers(type_id, count, key)

    def _numbers(self, type_id: int, count: int, key: str) -> list[Any]:
        if type_id not in SCALARS:
            raise self.corrupt(f"{key!r} is of the unknown value type {type_id}")
        dtype = np.dtype(SCALARS[type_id])
        self.expect(count, dtype.itemsize, f"numbers in {key!r}")
        stored = np.frombuffer(self.take(count * dtype.itemsize, key), np.uint8 if type_id == BOOL else dtype)
        numbers: list[Any] = (stored.astype(bool) if type_id == BOOL else stored).tolist()
        return numbers

    def _strings(self, count: int, key: str) -> list[str]:
        """The hot loop: a vocabulary and its merges are 100,000 to 400,000 strings."""
        mapped, position, size = self.mapped, self.position, self.size
        length: Callable[[Any, int], tuple[int]] = struct.Struct("<Q").unpack_from
        strings: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + length(mapped, position)[0]
                if position > size:
                    raise self.truncated(key)
                strings.append(mapped[start:position].decode("utf-8", "replace"))
        except struct.error as error:
            raise self.truncated(key) from error
        self.position = position
        return strings
