"""The tensors that the row store's kernels work on. Torch, no triton: their owner need not be able to run those."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from phloem.kernels.triton import packed


@dataclass(frozen=True)
class RowTensors:
    """The row store on the device, all int32 and contiguous. tokens[row, :known[row]] are known, computed[row] of them
    are in the pages block_table[row]; known - num_prompt have been generated. `sampling`, `listed`: words as in
    packed.py. Bit i of masks[row] says whether token i may follow; only a row that has a mask is asked."""

    tokens: Tensor  # [max_rows, max_model_len + 1]
    block_table: Tensor  # [max_rows, max_pages]
    known: Tensor  # [max_rows]
    computed: Tensor  # [max_rows]
    num_prompt: Tensor  # [max_rows]
    sampling: Tensor  # [max_rows, SAMPLING_WORDS]
    listed: Tensor  # [max_rows, LISTED_WORDS]
    masks: Tensor  # [max_rows, ceil(vocab_size / 32)]
    counts: Tensor  # [max_rows, vocab_size], zero between kernels: where adjust.py counts tokens

    @staticmethod
    def empty(
        *, max_rows: int, max_model_len: int, max_pages: int, device: torch.device | str, vocab_size: int = 0
    ) -> RowTensors:
        """A store of zeros."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        return RowTensors(
            tokens=zeros(max_rows, max_model_len + 1),
            block_table=zeros(max_rows, max_pages),
            known=zeros(max_rows),
            computed=zeros(max_rows),
            num_prompt=zeros(max_rows),
            sampling=zeros(max_rows, packed.SAMPLING_WORDS),
            listed=zeros(max_rows, packed.LISTED_WORDS),
            masks=zeros(max_rows, -(-vocab_size // 32)),
            counts=zeros(max_rows, vocab_size),
        )


@dataclass(frozen=True)
class StepTensors:
    """Static inputs of a step, int32 and contiguous, each at least as long as the largest bucket needs."""

    token_ids: Tensor  # [>= num_tokens]
    positions: Tensor  # [>= num_tokens]
    slots: Tensor  # [>= num_tokens]
    query_start: Tensor  # [>= num_rows + 1]
    context_len: Tensor  # [>= num_rows]
    block_table: Tensor  # [>= num_rows, max_pages], by batch row
    logit_rows: Tensor  # [>= num_logits]
    line_rows: Tensor  # [>= num_logits]; what sample() takes
    shared_start: Tensor  # [>= num_rows + 1]
    shared_rows: Tensor  # [>= num_rows]
    shared_pages: Tensor  # [>= num_rows]


@dataclass(frozen=True)
class BucketSize:
    """What a bucket is padded to; a plan may use less. `num_shared` groups cover at most `num_rows` rows."""

    num_rows: int
    num_tokens: int
    num_logits: int
    num_shared: int = 0
