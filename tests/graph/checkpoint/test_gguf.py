"""The GGUF reader: what it reads, how fast, and that nothing but a ModelError ever comes out of a bad file."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.gguf import read_header
from phloem.graph.checkpoint.open import open_checkpoint


def test_reads_every_kind_of_value(write_gguf) -> None:
    """Red if a value type is misread."""
    metadata = read_header(write_gguf()).metadata
    assert metadata == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "an.f32": 0.5,
        "a.bool": True,
        "tokens": ["a", "bé", "", "日本"],
        "types": [1, -3, 2],
        "flags": [True, False],
        "nested": [[1, 2], [3]],
        "a.u64": 2**40,
    }
    assert metadata["a.bool"] is True


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_are_views_of_the_file(write_gguf, version: int) -> None:
    """Red if shapes are not reversed to torch order, or offsets, padding or row lengths are wrong."""
    tensors = open_checkpoint(write_gguf(version=version)).tensors
    assert tensors["norm"].dequantize().tolist() == [1, 2, 3]
    assert tensors["matrix"].dequantize().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (tensors["quantized"].encoding, tensors["quantized"].shape) == ("Q8_0", (2, 64))
    assert tensors["quantized"].data.shape == (2, 68)
    assert not tensors["quantized"].data.flags.owndata
    assert tensors["quantized"].data[1, 0] == 68


def test_big_arrays_stay_out_of_the_configuration(write_gguf) -> None:
    """Red if a checkpoint's config carries the vocabulary."""
    path = write_gguf(metadata={"vocab": ("[i32]", [1] * 5000), "few": ("[i32]", [1, 2])})
    assert open_checkpoint(path).config == {"few": [1, 2]}
    assert len(read_header(path).metadata["vocab"]) == 5000


def test_another_alignment(write_gguf) -> None:
    """Red if general.alignment is ignored."""
    tensors = {"a": (0, (1,), b"\0\0\x80?"), "b": (0, (1,), b"\0\0\0@")}
    path = write_gguf(metadata={"general.alignment": ("u32", 256)}, tensors=tensors, alignment=256)
    assert open_checkpoint(path).tensors["b"].dequantize().tolist() == [2.0]


def test_truncated_anywhere_is_a_model_error_that_names_the_file(write_gguf, tmp_path) -> None:
    """Red if any cut gets through, raises something else, or is not explained."""
    whole = write_gguf().read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(len(whole) - 24):  # the last bytes are padding
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf: .*; "):
            open_checkpoint(path)


def test_flipped_bytes_never_raise_anything_else(write_gguf, tmp_path) -> None:
    """Red if a corrupt count, length, type or offset causes another exception, a huge allocation or a hang."""
    whole = write_gguf().read_bytes()
    path, rng, started = tmp_path / "flipped.gguf", random.Random(0), time.monotonic()
    refused = 0
    for position in range(len(whole)):
        for value in (0, 0x7F, 0xFF, rng.randrange(256)):
            path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                for tensor in open_checkpoint(path).tensors.values():
                    tensor.dequantize()
            except ModelError:
                refused += 1
    assert refused > 500
    assert time.monotonic() - started < 30


BAD = {
    "not a GGUF file": {"magic": b"PK\x03\x04"},
    "version 1 ": {"version": 1},
    "big-endian": {"version": 3 << 24},
    "unknown type 77": {"tensors": {"x": (77, (32,), b"")}},
    "stored as Q2_K": {"tensors": {"x": (10, (256,), b"")}},
    "do not fill whole Q8_0 blocks": {"tensors": {"x": (8, (33,), b"")}},
    "bytes beyond the end": {"tensors": {"x": (0, (1 << 40, 1 << 20), b"")}},
    r"has the shape \(0, 3\)": {"tensors": {"x": (0, (0, 3), b"")}},
    "has 5 dimensions": {"tensors": {"x": (0, (1, 1, 1, 1, 1), b"")}},
    "not a power of two": {"metadata": {"general.alignment": ("u32", 33)}},
    "a metadata key has 999 characters": {"metadata": {"k" * 999: ("u32", 1)}},
    "nests arrays too deeply": {"metadata": {"deep": ("[[[[[[u8]]]]]]", [[[[[[1]]]]]])}},
}


@pytest.mark.parametrize("problem", BAD)
def test_bad_files_are_explained(write_gguf, problem: str) -> None:
    """Red if one of these is accepted or its error does not say what is wrong."""
    with pytest.raises(ModelError, match=problem):
        open_checkpoint(write_gguf(**BAD[problem]))


def test_absurd_counts_are_refused_at_once(write_gguf) -> None:
    """Red if a count is believed before it is compared with the size of the file."""
    path = write_gguf()
    whole = bytearray(path.read_bytes())
    for offset in (8, 16):
        corrupt = bytes(whole[:offset]) + struct.pack("<Q", 2**62) + bytes(whole[offset + 8 :])
        path.write_bytes(corrupt)
        with pytest.raises(ModelError, match="announces"):
            open_checkpoint(path)


def test_missing_empty_and_unreadable(tmp_path) -> None:
    """Red if an operating-system error reaches the caller."""
    with pytest.raises(ModelError, match="no such file"):
        open_checkpoint(tmp_path / "nothing.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelError, match="empty"):
        open_checkpoint(tmp_path / "empty.gguf")


def test_default_model_header_is_fast(default_model: Path) -> None:
    """Red if parsing 49,152 tokens and as many merges takes longer than 150 ms."""
    times_s = []
    for _ in range(3):
        started = time.perf_counter()
        metadata = read_header(default_model).metadata
        times_s.append(time.perf_counter() - started)
    assert len(metadata["tokenizer.ggml.tokens"]) == 49152
    assert min(times_s) < 0.15


def test_default_model_agrees_with_the_reference_reader(default_model: Path) -> None:
    """Red if a tensor's place, type or shape differs from what the gguf package finds."""
    gguf = pytest.importorskip("gguf")
    ours = open_checkpoint(default_model).tensors
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(default_model).tensors}
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].encoding == tensor.tensor_type.name
        assert ours[name].shape == tuple(int(dim) for dim in reversed(tensor.shape))
        assert np.array_equal(ours[name].data.reshape(-1), tensor.data.reshape(-1).view(np.uint8))


def test_reading_checkpoints_needs_no_torch() -> None:
    """Red if something under graph.checkpoint imports torch: the front end reads tokenizers with it."""
    code = "import sys, phloem.graph.checkpoint.open; assert 'torch' not in sys.modules"
    source = str(Path(__file__).parents[3] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
