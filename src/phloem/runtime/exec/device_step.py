"""A step on the device, from the packed plan to the sampled tokens: apply, fill, run the model, sample, append."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from phloem.core.plan import RowStart
from phloem.graph.capture.buckets import Bucket, Buckets, StepSizes
from phloem.graph.capture.graphs import Body, StepOutput, Steps
from phloem.graph.lower.device import DeviceProgram
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.packed import PackedStep, max_words, pack
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors
from phloem.runtime.exec.device_rows import IntArray
from phloem.runtime.exec.queue import Queue


class RowKernels(Protocol):
    """What changes the row store on its device; kernels/triton/rows.py and sample.py say how. All only launch."""

    def apply_plan(self, plan: torch.Tensor, store: RowTensors) -> None: ...
    def fill_inputs(self, plan: torch.Tensor, store: RowTensors, step: StepTensors, size: BucketSize) -> None: ...
    def sample(
        self, logits: torch.Tensor, line_rows: torch.Tensor, store: RowTensors, *, truncates: bool
    ) -> torch.Tensor: ...
    def append_tokens(self, rows: torch.Tensor, token_ids: torch.Tensor, store: RowTensors) -> None: ...


class DeviceStep:
    """Owns the row store's tensors, the static inputs and the place of the packed plan. Called inside `queue.on()`."""

    def __init__(
        self,
        *,
        program: DeviceProgram,
        kernels: RowKernels,
        queue: Queue,
        store: RowTensors,
        inputs: StepTensors,
        buckets: Buckets,
        make_steps: Callable[[Body], Steps],
    ) -> None:
        self._program = program
        self._kernels = kernels
        self._queue = queue
        self._store = store
        self._inputs = inputs
        self._buckets = buckets
        num_words = max_words(
            max_rows=inputs.context_len.shape[0],
            max_logits=inputs.logit_rows.shape[0],
            max_pages=store.block_table.numel(),
        )
        self._plan = torch.zeros(num_words, dtype=torch.int32, device=store.known.device)
        self._steps = make_steps(self._launch)

    @property
    def is_warm(self) -> bool:
        """Whether the last step was a captured one."""
        return self._steps.is_warm

    def load_tokens(self, starts: Sequence[RowStart]) -> None:
        """Copy what the starting rows know."""
        if not starts:
            return
        width = max(len(start.token_ids) for start in starts)
        staged = self._queue.staging(len(starts) * (width + 1))
        words: IntArray = staged.numpy().reshape(len(starts), width + 1)
        words[:, 0] = [start.row for start in starts]
        for line, start in zip(words, starts):
            line[1 : 1 + len(start.token_ids)] = start.token_ids
            line[1 + len(start.token_ids) :] = 0
        there = self._queue.upload(staged).view(len(starts), width + 1)
        self._store.tokens[:, :width].index_copy_(0, there[:, 0].long(), there[:, 1:])

    def run(self, step: PackedStep, sizes: StepSizes, *, wants_logits: bool) -> StepOutput:
        """Launch one step. Its logits are there only if they are wanted."""
        words = step.batch_rows.size * 5 + step.line_tokens.size * 2 + step.starts.size + step.pages.size + 16
        staged = self._queue.staging(words)
        used = pack(step, staged.numpy())
        self._plan[:used].copy_(staged[:used], non_blocking=True)
        bucket = self._buckets.of(sizes)
        return self._steps.run_eagerly(bucket) if wants_logits else self._steps.run(bucket)

    def append(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        """Tokens that were chosen on the host become known on the device."""
        staged = self._queue.staging(2 * len(rows))
        staged.numpy()[:] = np.asarray([*rows, *token_ids], dtype=np.int32)
        there = self._queue.upload(staged)
        self._kernels.append_tokens(there[: len(rows)], there[len(rows) :], self._store)

    def shrink(self) -> None:
        """Give back memory after a step did not fit."""
        self._steps.shrink()

    @torch.inference_mode()
    def _launch(self, bucket: Bucket) -> StepOutput:
        shape = bucket.shape
        size = BucketSize(shape.num_rows, shape.num_tokens, bucket.num_logits, shape.num_shared)
        self._kernels.apply_plan(self._plan, self._store)
        self._kernels.fill_inputs(self._plan, self._store, self._inputs, size)
        logits = self._program.run(cut(self._inputs, shape, bucket.num_logits), shape)
        line_rows = self._inputs.line_rows[: bucket.num_logits]
        token_ids = self._kernels.sample(logits, line_rows, self._store, truncates=bucket.truncates)
        return StepOutput(token_ids, logits)


def cut(step: StepTensors, shape: AttentionShape, num_logits: int) -> dict[str, torch.Tensor]:
    """The step inputs of graph/ir, as long as a bucket."""
    return {
        "token_ids": step.token_ids[: shape.num_tokens],
        "positions": step.positions[: shape.num_tokens],
        "slots": step.slots[: shape.num_tokens],
        "logit_rows": step.logit_rows[:num_logits],
        "query_start": step.query_start[: shape.num_rows + 1],
        "context_len": step.context_len[: shape.num_rows],
        "block_table": step.block_table[: shape.num_rows],
        "shared_start": step.shared_start[: shape.num_shared + 1],
        "shared_rows": step.shared_rows[: shape.num_rows],
        "shared_pages": step.shared_pages[: shape.num_shared],
    }
