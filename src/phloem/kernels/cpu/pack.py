"""Weights for the native kernels: repacked once at load into panels of sixteen rows (layouts: native/storage.h)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.spec import ENCODINGS, RawWeight

ROWS_PER_PANEL = 16
STORAGES = ("q4", "q8", "q8m", "q8h", "bf16", "f32")  # numbered as native/ops.h does
RECORD_BYTES = {"q4": 320, "q8": 544, "q8m": 576, "q8h": 576}  # sixteen rows by thirty-two columns
COLUMNS_PER_RECORD = 32
MAX_COLUMNS = 32768  # what a thread's scratch holds of one strip of panels

NATURAL_STORAGE = {
    "F32": "f32",
    "F16": "bf16",
    "BF16": "bf16",
    "Q4_0": "q4",
    "Q4_1": "q4",
    "Q4_K": "q4",
    "Q5_0": "q8",
    "Q5_1": "q8m",
    "Q5_K": "q8m",
    "Q6_K": "q8h",
    "Q8_0": "q8",
}
# Scales that are products (K formats) round to float16, 2^-11 relative: fine beside bfloat16, not in float32.
EXACT_IN_FLOAT32 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F32")


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [num_rows, num_columns] in panels. `data` uint8, 64-byte aligned."""

    storage: str
    num_rows: int
    num_columns: int
    data: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.data.numel()

    @property
    def is_quantized(self) -> bool:
        return self.storage in RECORD_BYTES

    @property
    def storage_code(self) -> int:
        return STORAGES.index(self.storage)


def natural_storage(encoding: str, *, dtype: torch.dtype = torch.bfloat16, num_columns: int | None = None) -> str:
    """The storage that keeps a checkpoint encoding's numbers for activations of `dtype`.

    With bfloat16 activations every encoding has one (F32 becomes bf16). With float32 activations, encodings that no
    quantized storage holds exactly become f32. Rows whose length is no multiple of 32 cannot be quantized.
    """
    if dtype == torch.float32:
        return NATURAL_STORAGE[encoding] if encoding in EXACT_IN_FLOAT32 else "f32"
    storage = NATURAL_STORAGE[encoding]
    ragged = num_columns is not None and num_columns % COLUMNS_PER_RECORD != 0
    return "bf16" if storage == "f32" or ragged else storage


def packed_bytes(storage: str, num_rows: int, num_columns: int) -> int:
    """Bytes of a packed matrix; ValueError where the storage cannot hold such rows."""
    panels = -(-num_rows // ROWS_PER_PANEL)
    if storage in RECORD_BYTES:
        if num_columns % COLUMNS_PER_RECORD:
            raise ValueError(f"{storage} takes rows of a multiple of 32 columns, not {num_columns}")
        return panels * (num_columns // COLUMNS_PER_RECORD) * RECORD_BYTES[storage]
    if storage == "bf16" and num_columns % 2:
        raise ValueError(f"bf16 takes rows of an even number of columns, not {num_columns}")
    if storage not in STORAGES:
        raise ValueError(f"unknown storage {storage!r}; known: {', '.join(STORAGES)}")
    return panels * num_columns * ROWS_PER_PANEL * (2 if storage == "bf16" else 4)


class Packer:
    """Packs weights with a library's threads.

    Any source goes to any storage: encodings whose levels a storage holds keep them, everything else is decoded and
    rounded (bf16, f32) or quantized in groups of 32 (q4: scale and offset, q8: scale).
    """

    def __init__(self, library: Library, pool: Pool) -> None:
        self._library = library
        self._pool = pool

    def pack(self, raw: RawWeight | torch.Tensor, *, storage: str) -> PackedWeight:
        """`raw`: a matrix [N, K], a tensor in float32, float16 or bfloat16. ValueError if `storage` cannot hold it."""
        if isinstance(raw, torch.Tensor):
            return self._pack_tensor(raw, storage)
        if len(raw.shape) != 2:
            raise ValueError(f"pack() takes a matrix, not shape {raw.shape}")
        data = raw.data if raw.data.strides[1] == 1 else np.ascontiguousarray(raw.data)
        return self._pack(raw.encoding, data.ctypes.data, data.strides[0], raw.shape[0], raw.shape[1], storage)

    def _pack_tensor(self, tensor: torch.Tensor, storage: str) -> PackedWeight:
        encoding = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}.get(tensor.dtype)
        if encoding is None or tensor.dim() != 2:
            raise ValueError(f"pack() takes a float matrix, not {tensor.dtype} of shape {tuple(tensor.shape)}")
        tensor = tensor.contiguous()
        bytes_per_row = tensor.stride(0) * tensor.element_size()
        return self._pack(encoding, tensor.data_ptr(), bytes_per_row, tensor.shape[0], tensor.shape[1], storage)

    def _pack(self, encoding: str, source: int, row_bytes: int, rows: int, columns: int, storage: str) -> PackedWeight:
        data = torch.empty(packed_bytes(storage, rows, columns), dtype=torch.uint8)
        if columns > MAX_COLUMNS:
            raise ValueError(f"rows of more than {MAX_COLUMNS} columns do not fit the kernels' scratch: {columns}")
        self._library.pack(
            self._pool.address,
            ENCODINGS.index(encoding),
            source,
            row_bytes,
            rows,
            columns,
            STORAGES.index(storage),
            data.data_ptr(),
        )
        return PackedWeight(storage, rows, columns, data)
