"""Recipes: what they make, what stays quantized, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.checkpoint import Checkpoint, Entry, LazyTensors
from phloem.graph.weights import Concat, Constant, Rows, Stored, load_raw, sources, stored_bytes, to_torch
from phloem.kernels.spec import RawWeight


def quantized(rows: int, seed: int) -> RawWeight:
    """Q8_0 with every scale one half."""
    data = np.random.default_rng(seed).integers(0, 256, (rows, 34), dtype=np.uint8)
    data[:, :2] = np.array([0.5], np.float16).view(np.uint8)
    return RawWeight("Q8_0", (rows, 32), data)


@pytest.fixture
def checkpoint() -> Checkpoint:
    plain = RawWeight.from_array(np.arange(64, dtype=np.float32).reshape(2, 32))
    tensors = {
        "a": quantized(4, 0),
        "b": quantized(2, 1),
        "c": plain,
        "bias": RawWeight.from_array(np.arange(4, dtype=np.float32)),
        "half": RawWeight("F16", (2,), np.array([[7, 8]], np.float16).view(np.uint8)),
        "brain": RawWeight("BF16", (1, 2), np.frombuffer(b"\x80?\0\xc0", np.uint8).reshape(1, 4)),
    }
    entries = {name: Entry(raw.encoding, raw.num_bytes, lambda raw=raw: raw) for name, raw in tensors.items()}
    return Checkpoint(Path("here"), "gguf", {}, LazyTensors(entries))


A, B, C = Stored("a", (4, 32)), Stored("b", (2, 32)), Stored("c", (2, 32))


def test_concat_of_one_encoding_stays_quantized(checkpoint) -> None:
    """Red if merged quantized weights are dequantized, or joined in another order."""
    raw = load_raw(Concat((A, B)), checkpoint)
    assert (raw.encoding, raw.shape) == ("Q8_0", (6, 32))
    tensors = checkpoint.tensors
    assert np.array_equal(raw.data, np.concatenate([tensors["a"].data, tensors["b"].data]))


def test_concat_of_mixed_encodings_becomes_float32(checkpoint) -> None:
    """Red if bytes of different encodings are joined."""
    raw = load_raw(Concat((A, C)), checkpoint)
    assert (raw.encoding, raw.shape) == ("F32", (6, 32))
    expected = np.concatenate([checkpoint.tensors[name].dequantize() for name in "ac"])
    assert np.array_equal(raw.dequantize(), expected)


def test_rows_stay_quantized(checkpoint) -> None:
    """Red if a permutation or a part of a quantized matrix is dequantized or picks other rows."""
    whole = checkpoint.tensors["a"].dequantize()
    for index in (np.array([3, 0, 2, 1]), slice(1, 3)):
        recipe = Rows(A, index)
        raw = load_raw(recipe, checkpoint)
        assert (raw.encoding, raw.shape) == ("Q8_0", recipe.shape)
        assert np.array_equal(raw.dequantize(), whole[index])


def test_vectors_are_joined_and_permuted_by_number(checkpoint) -> None:
    """Red if a bias, which is one row of bytes, is permuted or joined as a matrix would be."""
    bias, half = Stored("bias", (4,)), Stored("half", (2,))
    assert load_raw(Rows(bias, np.array([2, 3, 0, 1])), checkpoint).dequantize().tolist() == [2, 3, 0, 1]
    recipe = Concat((bias, half))
    assert recipe.shape == (6,)
    assert load_raw(recipe, checkpoint).dequantize().tolist() == [0, 1, 2, 3, 7, 8]


def test_constants(checkpoint) -> None:
    """Red if numbers from the configuration change on the way."""
    raw = load_raw(Constant(np.array([1.5, 2.5], np.float32)), checkpoint)
    assert (raw.encoding, raw.dequantize().tolist()) == ("F32", [1.5, 2.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_torch(checkpoint, dtype: torch.dtype) -> None:
    """Red if bf16 bits, shapes or types are wrong, or the tensor is a view of read-only memory."""
    brain = to_torch(load_raw(Stored("brain", (1, 2)), checkpoint), dtype)
    assert (brain.dtype, brain.tolist()) == (dtype, [[1.0, -2.0]])
    tensor = to_torch(load_raw(A, checkpoint), dtype)
    torch.testing.assert_close(tensor, torch.tensor(checkpoint.tensors["a"].dequantize()).to(dtype))
    tensor.zero_()
    assert checkpoint.tensors["a"].dequantize().any()


def test_missing_and_misshapen_tensors_are_named(checkpoint) -> None:
    """Red if the error does not name file and tensor."""
    with pytest.raises(ModelError, match="here: tensor 'nothing' is missing"):
        load_raw(Concat((A, Stored("nothing", (1, 32)))), checkpoint)
    with pytest.raises(ModelError, match=r"here: tensor 'a' has shape \(4, 32\), the configuration implies \(5, 32\)"):
        load_raw(Stored("a", (5, 32)), checkpoint)


def test_sources_and_sizes(checkpoint) -> None:
    """Red if a tensor of a recipe is not counted."""
    recipe = Concat((Rows(A, slice(0, 4)), B))
    assert [source.name for source in sources(recipe)] == ["a", "b"]
    assert stored_bytes(recipe, checkpoint) == 6 * 34
    assert stored_bytes(Constant(np.zeros(3, np.float32)), checkpoint) == 12
