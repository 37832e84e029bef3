"""Raw weights against the gguf package's own decoder, and row-wise work on stored bytes."""

from __future__ import annotations

import numpy as np
import pytest

from phloem.kernels.spec import ENCODINGS, RawWeight, concat, dequantize
from tests.kernels.blocks import random_weight

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_dequantize_agrees_with_gguf(encoding: str) -> None:
    """Red if a bit field of a block format is read from the wrong place."""
    raw = random_weight(encoding, 6, 512)
    stored = raw.data.view({"F32": np.float32, "F16": np.float16}.get(encoding, np.uint8))
    expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[encoding])
    assert np.array_equal(dequantize(raw), expected.reshape(6, 512))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_and_concat_stay_in_stored_form(encoding: str) -> None:
    """Red if a gather or a join decodes, reorders or mixes rows."""
    raw = random_weight(encoding, 8, 256)
    numbers = raw.dequantize()
    order = np.array([7, 0, 3])
    assert np.array_equal(raw.rows(order).dequantize(), numbers[order])
    assert np.shares_memory(raw.rows(slice(2, 5)).data, raw.data)
    joined = concat([raw.rows(order), raw])
    assert joined.encoding == encoding
    assert joined.shape == (11, 256)
    assert np.array_equal(joined.dequantize(), np.concatenate([numbers[order], numbers]))


def test_vectors_concat_along_their_length() -> None:
    """Red if biases of q, k and v stack as rows."""
    parts = [RawWeight.from_array(np.arange(n, dtype=np.float32)) for n in (3, 2)]
    assert concat(parts).shape == (5,)
    assert concat(parts).dequantize().tolist() == [0, 1, 2, 0, 1]


def test_wrong_sizes_and_encodings_are_refused() -> None:
    """Red if a truncated tensor passes for a whole one."""
    with pytest.raises(ValueError, match="unknown encoding"):
        RawWeight("Q3_K", (1, 256), np.zeros((1, 110), np.uint8))
    with pytest.raises(ValueError, match="needs uint8"):
        RawWeight("Q8_0", (2, 32), np.zeros((2, 33), np.uint8))
    with pytest.raises(ValueError, match="blocks of 32"):
        RawWeight("Q8_0", (1, 33), np.zeros((1, 34), np.uint8))
    with pytest.raises(ValueError, match="one encoding"):
        concat([random_weight("Q8_0", 1, 32), random_weight("Q4_0", 1, 32)])
    with pytest.raises(ValueError, match="equal columns"):
        concat([random_weight("Q8_0", 1, 32), random_weight("Q8_0", 1, 64)])
