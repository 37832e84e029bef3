"""Small model files, written here byte by byte so that any byte can be wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCALARS = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "u8": (0, "<B")}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def typed(kind: str, value: Any) -> bytes:
    """Type id and value of one metadata entry; `kind` is "str", a scalar kind, or "[kind]" for an array."""
    if kind == "str":
        return struct.pack("<I", 8) + text(value)
    if kind.startswith("["):
        item = kind[1:-1]
        items = [typed(item, entry) for entry in value]
        type_id = items[0][:4] if items else struct.pack("<I", SCALARS[item][0])
        return struct.pack("<I", 9) + type_id + struct.pack("<Q", len(items)) + b"".join(entry[4:] for entry in items)
    type_id, layout = SCALARS[kind]
    return struct.pack("<I", type_id) + struct.pack(layout, value)


def gguf_bytes(
    metadata: dict[str, tuple[str, Any]],
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]],
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    alignment: int = 32,
) -> bytes:
    """A GGUF file; `tensors`: name -> (type id, shape in torch order, data)."""
    head = magic + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(*value) for key, value in metadata.items())
    data = b""
    for name, (type_id, shape, content) in tensors.items():
        dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", type_id, len(data))
        data += content + b"\0" * (-len(content) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


SAMPLE_METADATA: dict[str, tuple[str, Any]] = {
    "general.architecture": ("str", "llama"),
    "llama.block_count": ("u32", 2),
    "an.f32": ("f32", 0.5),
    "a.bool": ("bool", True),
    "tokens": ("[str]", ["a", "bé", "", "日本"]),
    "types": ("[i32]", [1, -3, 2]),
    "flags": ("[bool]", [True, False]),
    "nested": ("[[u8]]", [[1, 2], [3]]),
    "a.u64": ("u64", 2**40),
}
SAMPLE_TENSORS: dict[str, tuple[int, tuple[int, ...], bytes]] = {
    "norm": (0, (3,), np.array([1, 2, 3], np.float32).tobytes()),
    "matrix": (1, (2, 3), np.arange(6, dtype=np.float16).tobytes()),
    "quantized": (8, (2, 64), bytes(range(2 * 2 * 34))),
}


def safetensors_bytes(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file; `tensors`: name -> (dtype, shape, data)."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


@pytest.fixture
def write_gguf(tmp_path: Path) -> Any:
    """Writes a GGUF file of the sample, or with parts of it replaced, and returns its path."""

    def write(**parts: Any) -> Path:
        path = tmp_path / "model.gguf"
        metadata, tensors = parts.pop("metadata", SAMPLE_METADATA), parts.pop("tensors", SAMPLE_TENSORS)
        path.write_bytes(gguf_bytes(metadata, tensors, **parts))
        return path

    return write


@pytest.fixture
def write_folder(tmp_path: Path) -> Any:
    """Writes a folder with a config.json and safetensors files, and returns its path."""

    def write(files: dict[str, bytes], config: bytes = b'{"model_type": "llama"}') -> Path:
        (tmp_path / "config.json").write_bytes(config)
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    return write


@pytest.fixture
def make_safetensors() -> Any:
    return safetensors_bytes
