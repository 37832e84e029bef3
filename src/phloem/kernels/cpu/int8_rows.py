"""Activations as int8 for linears over quantized weights (layout: native/int8_rows.h; why: docs/decisions/0003)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phloem.kernels.cpu.pack import COLUMNS_PER_RECORD, PackedWeight

EVEN_ODD_STORAGES = ("q4",)  # whose products take the levels of every 8 columns in the order 0 2 4 6 1 3 5 7
BLOCK_SCALE_BYTES = 16  # of 32 columns
FIRST_TYPE = 2  # ACT_INT8 of native/ops.h; the order is added


@dataclass(frozen=True)
class Int8Rows:
    """Room for rows of `num_columns` numbers, as levels in the order that one kind of weight storage needs.

    `data` uint8 [rows, bytes a row]; `is_even_odd` says which order.
    """

    data: torch.Tensor
    num_columns: int
    is_even_odd: bool

    @staticmethod
    def for_weight(weight: PackedWeight, *, max_rows: int) -> Int8Rows:
        """What a linear over `weight` reads; ValueError for a weight that is not quantized."""
        if not weight.is_quantized:
            raise ValueError("int8 products need a quantized weight")
        columns = weight.num_columns
        row_bytes = -(-(columns + columns // COLUMNS_PER_RECORD * BLOCK_SCALE_BYTES) // 64) * 64
        data = torch.empty(max_rows, row_bytes, dtype=torch.uint8)
        return Int8Rows(data, columns, weight.storage in EVEN_ODD_STORAGES)

    @property
    def type_code(self) -> int:
        """How an instruction names this type of output."""
        return FIRST_TYPE + self.is_even_odd

    def serves(self, weight: PackedWeight) -> bool:
        """Whether a linear over `weight` can read these rows."""
        has_order = self.is_even_odd == (weight.storage in EVEN_ODD_STORAGES)
        return weight.is_quantized and has_order and weight.num_columns == self.num_columns
