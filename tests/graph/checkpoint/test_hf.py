"""Hugging Face folders: what is read from them, and that nothing but a ModelError ever comes out of a bad one."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.open import open_checkpoint

F32 = ("F32", (2, 2), np.array([[1, 2], [3, 4]], np.float32).tobytes())
BF16 = ("BF16", (1, 2), b"\x80?\0@")  # 1 and 2
I64 = ("I64", (1,), b"\0" * 8)


def test_one_file(write_folder, make_safetensors) -> None:
    """Red if dtypes, shapes or offsets are misread, or an unused integer tensor stops the folder from opening."""
    folder = write_folder({"model.safetensors": make_safetensors({"a": F32, "b": BF16, "ids": I64})})
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.kind, checkpoint.config, checkpoint.generation_config) == ("hf", {"model_type": "llama"}, {})
    assert checkpoint.tensors["a"].dequantize().tolist() == [[1, 2], [3, 4]]
    assert checkpoint.tensors["b"].encoding == "BF16"
    assert checkpoint.tensors["b"].dequantize().tolist() == [[1, 2]]
    assert "ids" in checkpoint.tensors
    with pytest.raises(ModelError, match=r"'ids' is I64"):
        checkpoint.tensors["ids"]


def test_agrees_with_the_safetensors_package(write_folder, tmp_path) -> None:
    """Red if a file written by the package is read differently here."""
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {
        "w": np.random.default_rng(0).standard_normal((5, 7)).astype(np.float16),
        "bias": np.arange(3, dtype=np.float32),
    }
    numpy.save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = open_checkpoint(write_folder({})).tensors
    assert set(tensors) == {"w", "bias"}
    for name, array in arrays.items():
        assert np.array_equal(tensors[name].dequantize(), array)


def test_index_decides_which_files_count(write_folder, make_safetensors) -> None:
    """Red if a sharded folder is read past its index, or one of its files is not opened."""
    index = json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}).encode()
    files = {"x-1.safetensors": make_safetensors({"a": F32}), "x-2.safetensors": make_safetensors({"b": BF16})}
    other = {"consolidated.safetensors": make_safetensors({"other": F32})}
    folder = write_folder(files | other | {"model.safetensors.index.json": index})
    assert set(open_checkpoint(folder).tensors) == {"a", "b"}


def test_generation_config_is_read(write_folder, make_safetensors) -> None:
    """Red if generation_config.json is ignored."""
    files = {"model.safetensors": make_safetensors({}), "generation_config.json": b'{"eos_token_id": [1, 2]}'}
    assert open_checkpoint(write_folder(files)).generation_config == {"eos_token_id": [1, 2]}


def test_truncated_anywhere_is_a_model_error_that_names_the_file(write_folder, make_safetensors) -> None:
    """Red if any cut gets through or raises something else."""
    whole = make_safetensors({"a": F32, "b": BF16})
    for length in range(len(whole)):
        folder = write_folder({"model.safetensors": whole[:length]})
        with pytest.raises(ModelError, match=r"model\.safetensors: .*; "):
            open_checkpoint(folder)


def test_flipped_bytes_never_raise_anything_else(write_folder, make_safetensors) -> None:
    """Red if a corrupt header causes another exception."""
    whole = make_safetensors({"a": F32, "b": BF16})
    for position in range(len(whole)):
        for value in (0, 0x22, 0x7B, 0x5B, 0x39, 0xFF):
            folder = write_folder({"model.safetensors": whole[:position] + bytes([value]) + whole[position + 1 :]})
            try:
                for tensor in open_checkpoint(folder).tensors.values():
                    tensor.dequantize()
            except ModelError:
                pass


def header(content: object) -> bytes:
    encoded = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return struct.pack("<Q", len(encoded)) + encoded


BAD_FILES = {
    "not an object": header([]),
    "corrupt safetensors header": header(b"{" * 100_000),
    "entry 'a'": header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
    "entry 'b'": header({"b": 3}),
    "ends 4 bytes too late": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
    "in 0 bytes": header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 0]}}),
    "should be 18446744073709551615 bytes": b"\xff" * 16,
}


@pytest.mark.parametrize("problem", BAD_FILES)
def test_bad_headers_are_explained(write_folder, problem: str) -> None:
    """Red if one of these is accepted or its error does not say what is wrong."""
    with pytest.raises(ModelError, match=problem):
        open_checkpoint(write_folder({"model.safetensors": BAD_FILES[problem]}))


BAD_FOLDERS = {
    "no \\*.safetensors file": {},
    "never loaded": {"pytorch_model.bin": b"x"},
    "outside of its folder": {"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
    "missing, though the index": {"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'},
    "no usable weight_map": {"model.safetensors.index.json": b'{"weight_map": 3}'},
    "index.json: not valid JSON": {"model.safetensors.index.json": b"\xff{"},
    "generation_config.json: not a JSON object": {
        "generation_config.json": b"[]",
        "model.safetensors": header({}),
    },
}


@pytest.mark.parametrize("problem", BAD_FOLDERS)
def test_bad_folders_are_explained(write_folder, problem: str) -> None:
    """Red if one of these is accepted or its error does not say what is wrong."""
    with pytest.raises(ModelError, match=problem):
        open_checkpoint(write_folder(BAD_FOLDERS[problem]))


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"\x00\xff", b"[" * 100_000])
def test_bad_configuration_is_explained(write_folder, make_safetensors, config: bytes) -> None:
    """Red if a config.json that is no JSON object raises anything but a ModelError naming it."""
    with pytest.raises(ModelError, match=r"config\.json: "):
        open_checkpoint(write_folder({"model.safetensors": make_safetensors({"a": F32})}, config))


def test_a_folder_without_configuration_is_explained(tmp_path) -> None:
    """Red if a missing config.json is an OSError."""
    with pytest.raises(ModelError, match=r"config\.json: missing"):
        open_checkpoint(tmp_path)
