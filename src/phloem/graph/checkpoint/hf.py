"""Hugging Face folders: config.json, generation_config.json and one or many safetensors files.

The safetensors header (eight bytes of length, then JSON: name -> dtype, shape, data_offsets) is read here and not with
the package of that name, whose numpy side does not know bfloat16.
"""

from __future__ import annotations

import json
import mmap
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from phloem.graph.checkpoint.checkpoint import Checkpoint, Entry, LazyTensors, broken
from phloem.kernels.spec import RawWeight

MAX_HEADER_BYTES = 100_000_000
MAX_CONFIG_BYTES = 50_000_000
ENCODINGS = {"F32": 4, "F16": 2, "BF16": 2}  # dtypes that weights may have, and bytes a number
OTHER_DTYPES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
                "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}  # fmt: skip
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a Hugging Face folder; tensors are views of the memory maps of its safetensors files."""
    config = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    entries: dict[str, Entry] = {}
    for file in _weight_files(folder):
        entries.update(_open_safetensors(file))
    return Checkpoint(
        path=folder,
        kind="hf",
        config=config,
        tensors=LazyTensors(entries),
        generation_config=read_json(generation) if generation.is_file() else {},
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        raise broken(path, "missing", "a model folder needs config.json and *.safetensors") from error
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})", "check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise broken(path, f"not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise broken(path, "not a JSON object")
    return content


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        return _indexed_files(index)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if files := sorted(folder.glob("*.safetensors")):
        return files
    if any(folder.glob("*.bin")):
        raise broken(folder, "has pickled weights (*.bin) only, which are never loaded", "convert it to safetensors")
    raise broken(folder, "has no *.safetensors file", "download the weights as well as the configuration")


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise broken(index, "has no usable weight_map")
    names: set[str] = set(weight_map.values())
    for name in sorted(names):
        if Path(name).name != name or "\0" in name:
            raise broken(index, f"names a file outside of its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise broken(index.parent / name, "missing, though the index names it", "download it")
    return [index.parent / name for name in sorted(names)]


def _open_safetensors(path: Path) -> dict[str, Entry]:
    contents = _map(path)
    if contents.size < 8:
        raise broken(path, "truncated: too short for a safetensors header", "download it again")
    header_bytes = int.from_bytes(contents[:8].tobytes(), "little")
    if header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > contents.size:
        raise broken(path, f"truncated or corrupt: its header should be {header_bytes} bytes long")
    try:
        header = json.loads(contents[8 : 8 + header_bytes].tobytes())
    except (ValueError, RecursionError) as error:
        raise broken(path, f"corrupt safetensors header ({error})") from error
    if not isinstance(header, dict):
        raise broken(path, "corrupt safetensors header (not an object)")
    header.pop("__metadata__", None)
    data = contents[8 + header_bytes :]
    return {name: _checked(path, data, name, entry) for name, entry in header.items()}


def _map(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise broken(path, "the file is empty")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})", "check the path and its permissions") from error


def _checked(path: Path, data: npt.NDArray[np.uint8], name: str, entry: Any) -> Entry:
    """One header entry, checked against the bytes there are."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise broken(path, f"corrupt safetensors header (entry {name!r})")
    begin, end = offsets
    if end > data.size:
        raise broken(path, f"truncated: tensor {name!r} ends {end - data.size} bytes too late", "download it again")
    bytes_each = ENCODINGS.get(dtype) or OTHER_DTYPES.get(dtype)
    if begin > end or (bytes_each and prod(shape) * bytes_each != end - begin):
        raise broken(path, f"corrupt safetensors header (tensor {name!r}: {dtype} {shape} in {end - begin} bytes)")
    return Entry(dtype, end - begin, partial(_view, path, name, dtype, tuple(shape), data[begin:end]))


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _view(path: Path, name: str, dtype: str, shape: tuple[int, ...], data: npt.NDArray[np.uint8]) -> RawWeight:
    if dtype not in ENCODINGS or not all(shape):
        problem = f"tensor {name!r} is {dtype} {list(shape)}, which is not supported"
        raise broken(path, problem, f"use weights in one of {', '.join(ENCODINGS)}")
    rows = prod(shape[:-1])
    return RawWeight(dtype, shape, data.reshape(rows, -1))
