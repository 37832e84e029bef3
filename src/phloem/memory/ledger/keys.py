"""Token ids as bytes: the form in which the index compares, slices and hashes them at C speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BYTES_PER_TOKEN = 4


def encode_tokens(tokens: Sequence[int]) -> bytes:
    """Big-endian uint32 per token, so that keys sort, slice and compare as the token sequences do."""
    return np.asarray(tokens, dtype=">u4").tobytes()


def common_tokens(left: bytes, right: bytes) -> int:
    """Leading tokens that two keys share. The highest bit of their exclusive or marks the first byte that differs."""
    num_bytes = min(len(left), len(right))
    difference = int.from_bytes(left[:num_bytes], "big") ^ int.from_bytes(right[:num_bytes], "big")
    num_equal_bytes = num_bytes - (difference.bit_length() + 7) // 8
    return num_equal_bytes // BYTES_PER_TOKEN
