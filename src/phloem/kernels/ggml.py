"""The ggml block formats in numpy: how many bytes a block takes, and what numbers it stands for.

A row of a quantized matrix is a sequence of blocks of 32 or 256 numbers. Every decoder below takes the blocks of a
tensor, uint8 [B, bytes_per_block], and returns float32 [B, numbers_per_block]. Formats: ggml's block structs (d and m
are float16 scale and offset; the K formats pack six-bit scales of sub-blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class BlockFormat(NamedTuple):
    """Numbers and bytes a block, and its decoder."""

    numbers: int
    bytes: int
    decode: Callable[[Bytes], Floats]


def bytes_per_row(encoding: str, columns: int) -> int:
    """Bytes that `columns` numbers take in `encoding`; ValueError where they do not fill whole blocks."""
    block = FORMATS[encoding]
    if columns % block.numbers:
        raise ValueError(f"{encoding} stores blocks of {block.numbers} numbers; a row of {columns} does not divide")
    return columns // block.numbers * block.bytes


def decode_rows(encoding: str, data: Bytes) -> Floats:
    """Rows of blocks, uint8 [N, bytes_per_row], to float32 [N, numbers]."""
    block = FORMATS[encoding]
    blocks = np.ascontiguousarray(data).reshape(-1, block.bytes)
    return block.decode(blocks).reshape(data.shape[0], -1)


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _half(blocks: Bytes, offset: int) -> Floats:
    """The float16 at byte `offset` of each block, as float32 [B, 1]."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> npt.NDArray[np.int32]:
    """[B, n] bytes to [B, 2n]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.int32)


def _fifth_bits(blocks: Bytes, offset: int) -> npt.NDArray[np.int32]:
    bits = np.unpackbits(blocks[:, offset : offset + 4], axis=1, bitorder="little")
    return bits.astype(np.int32) << 4


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8).astype(np.float32)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    levels = (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)) - 16
    return _half(blocks, 0) * levels.astype(np.float32)


def _q5_1(blocks: Bytes) -> Floats:
    levels = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * levels.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _k_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """The twelve bytes of a K block: eight six-bit scales and eight six-bit minima, each float32 [B, 8]."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_blocks(blocks: Bytes, levels: npt.NDArray[Any]) -> Floats:
    """d * scale * level - dmin * minimum for eight sub-blocks of 32; `levels` [B, 8, 32]."""
    scales, minima = _k_scales(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales)[:, :, None]
    offset = (_half(blocks, 2) * minima)[:, :, None]
    return (scale * levels.astype(np.float32) - offset).reshape(len(blocks), 256)


def _k_nibbles(packed: Bytes) -> Bytes:
    """128 bytes to [B, 8, 32]: each run of 32 bytes holds two sub-blocks, low nibbles first."""
    runs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> Floats:
    return _k_blocks(blocks, _k_nibbles(blocks[:, 16:]))


def _q5_k(blocks: Bytes) -> Floats:
    sub_block = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = (blocks[:, None, 16:48] >> sub_block & 1) << 4
    return _k_blocks(blocks, _k_nibbles(blocks[:, 48:]) | fifth)


def _q6_k(blocks: Bytes) -> Floats:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    levels = (low | high << 4).astype(np.int32) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    scale = (_half(blocks, 208) * scales)[:, :, None]
    return (scale * levels.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


FORMATS: dict[str, BlockFormat] = {
    "F32": BlockFormat(1, 4, _f32),
    "F16": BlockFormat(1, 2, _f16),
    "BF16": BlockFormat(1, 2, _bf16),
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
}
