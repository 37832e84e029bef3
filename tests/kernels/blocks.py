"""Random checkpoint tensors in every ggml encoding."""

from __future__ import annotations

import numpy as np

from phloem.kernels import ggml
from phloem.kernels.spec import RawWeight

HALVES = {"Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,)}  # byte offsets of a block's float16 fields


def random_weight(encoding: str, rows: int, columns: int, seed: int = 0) -> RawWeight:
    """A matrix of random blocks whose scales keep the numbers around one tenth."""
    rng = np.random.default_rng(seed)
    block = ggml.FORMATS[encoding]
    if encoding in ("F32", "F16", "BF16"):
        numbers = rng.standard_normal((rows, columns)).astype(np.float32) * 0.1
        if encoding == "BF16":
            data = np.ascontiguousarray((numbers.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
        else:
            data = numbers.astype(np.float32 if encoding == "F32" else np.float16).view(np.uint8)
        return RawWeight(encoding, (rows, columns), data)
    count = rows * columns // block.numbers
    blocks = rng.integers(0, 256, (count, block.bytes), dtype=np.uint8)
    scale = 0.001 if encoding in ("Q8_0",) else 0.0001 if encoding.endswith("_K") else 0.01
    for offset in HALVES.get(encoding, (0, 2)):
        half = (rng.standard_normal((count, 1)) * scale).astype(np.float16)
        blocks[:, offset : offset + 2] = half.view(np.uint8)
    return RawWeight(encoding, (rows, columns), blocks.reshape(rows, -1))
