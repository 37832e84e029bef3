"""A step on the device, from the packed plan to the drawn tokens: apply, fill, run the model, adjust, draw, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from phloem.core.plan import RowStart
from phloem.graph.capture.buckets import Bucket, Buckets, StepSizes
from phloem.graph.capture.graphs import Body, StepOutput, Steps
from phloem.graph.cost import StepLoad
from phloem.graph.lower.device import DeviceProgram
from phloem.graph.lower.device_profile import profile, seconds
from phloem.graph.lower.program import OpTime, StepTimes
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.packed import PackedStep, max_words, pack
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors
from phloem.runtime.exec.device_rows import IntArray
from phloem.runtime.exec.queue import Queue


class RowKernels(Protocol):
    """What changes the row store and draws from logits on its device; kernels/triton/{rows,adjust,sample,report}.py say
    how. All only launch."""

    def apply_plan(self, plan: torch.Tensor, store: RowTensors) -> None: ...
    def fill_inputs(self, plan: torch.Tensor, store: RowTensors, step: StepTensors, size: BucketSize) -> None: ...
    def adjust(self, logits: torch.Tensor, line_rows: torch.Tensor, store: RowTensors) -> None: ...
    def sample(
        self, logits: torch.Tensor, line_rows: torch.Tensor, store: RowTensors, *, truncates: bool
    ) -> torch.Tensor: ...
    def report(
        self, logits: torch.Tensor, token_ids: torch.Tensor, line_rows: torch.Tensor, store: RowTensors
    ) -> torch.Tensor: ...


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
        """Whether steps like the last are captured."""
        return self._steps.is_warm

    def prepare(self) -> bool:
        """Capture one kind of step that was asked for; False if there is none."""
        return self._steps.prepare()

    def load_tokens(self, starts: Sequence[RowStart]) -> None:
        """Copy what the starting rows know."""
        width = max((len(start.token_ids) for start in starts), default=0)
        self._put(self._store.tokens, {start.row: start.token_ids for start in starts}, width)

    def load_listed(self, listed: Mapping[int, IntArray]) -> None:
        """Copy what starting rows list, as kernels/triton/packed.py lays it out."""
        self._put(self._store.listed, listed, self._store.listed.shape[1])

    def load_masks(self, masks: Mapping[int, IntArray]) -> None:
        """Copy the masks of the tokens that rows are about to draw; bits that are missing forbid."""
        width = self._store.masks.shape[1]
        self._put(self._store.masks, {row: mask[:width] for row, mask in masks.items()}, width)

    def load_forced(self, forced: Mapping[int, Sequence[int]], first: IntArray) -> None:
        """Write tokens that rows have to take from their places `first` on. Nothing counts them as known yet."""
        width = self._store.tokens.shape[1]
        places = [
            row * width + place
            for (row, token_ids), start in zip(forced.items(), first.tolist(), strict=True)
            for place in range(start, start + len(token_ids))
        ]
        staged = self._queue.staging(2 * len(places))
        staged.numpy()[:] = [*places, *(token_id for token_ids in forced.values() for token_id in token_ids)]
        there = self._queue.upload(staged).view(2, len(places))
        self._store.tokens.view(-1).index_copy_(0, there[0].long(), there[1])

    def run(self, step: PackedStep, sizes: StepSizes, *, wants_logits: bool) -> StepOutput:
        """Launch one step. Its logits are there only if they are wanted."""
        self._load_plan(step)
        bucket = self._buckets.of(sizes)
        return self._steps.run_eagerly(bucket) if wants_logits else self._steps.run(bucket)

    def profile(self, step: PackedStep, sizes: StepSizes, load: StepLoad) -> StepTimes:
        """Time a step op by op, then the whole of it as it is usually run. `step` starts its rows anew, so that each
        run is the same."""
        self._load_plan(step)
        bucket = self._buckets.of(sizes)
        inputs = cut(self._inputs, bucket.shape, bucket.num_logits)
        line_rows = self._inputs.line_rows[: bucket.num_logits]
        applied_s = seconds(lambda: self._kernels.apply_plan(self._plan, self._store))
        filled_s = seconds(lambda: self._kernels.fill_inputs(self._plan, self._store, self._inputs, size_of(bucket)))
        ops, logits = profile(self._program, inputs, bucket.shape, load)
        drawn_s = seconds(lambda: self._kernels.sample(logits, line_rows, self._store, truncates=bucket.truncates))
        row_ops = [OpTime("apply_plan", applied_s, 0, 0), OpTime("fill_inputs", filled_s, 0, 0)]
        self._steps.run(bucket)
        while self._steps.prepare():
            pass
        whole_s = seconds(lambda: self._steps.run(bucket))
        return StepTimes([*row_ops, *ops, OpTime("sample", drawn_s, logits.nbytes, 0)], whole_s)

    def _load_plan(self, step: PackedStep) -> None:
        """Copy a packed plan to its place."""
        words = step.batch_rows.size * 5 + step.line_tokens.size * 2 + step.starts.size + step.pages.size + 16
        staged = self._queue.staging(words)
        used = pack(step, staged.numpy())
        self._plan[:used].copy_(staged[:used], non_blocking=True)

    def shrink(self) -> None:
        """Give back memory after a step did not fit."""
        self._steps.shrink()

    @torch.inference_mode()
    def _launch(self, bucket: Bucket) -> StepOutput:
        shape = bucket.shape
        self._kernels.apply_plan(self._plan, self._store)
        self._kernels.fill_inputs(self._plan, self._store, self._inputs, size_of(bucket))
        logits = self._program.run(cut(self._inputs, shape, bucket.num_logits), shape)
        line_rows = self._inputs.line_rows[: bucket.num_logits]
        raw = logits.clone() if bucket.adjusts and bucket.reports else logits
        if bucket.adjusts:
            self._kernels.adjust(logits, line_rows, self._store)
        token_ids = self._kernels.sample(logits, line_rows, self._store, truncates=bucket.truncates)
        reports = self._kernels.report(raw, token_ids, line_rows, self._store) if bucket.reports else None
        return StepOutput(token_ids, reports, raw)

    def _put(self, target: torch.Tensor, lines: Mapping[int, Sequence[int] | IntArray], width: int) -> None:
        """Copy each line to the head of its row of `target`, filled up with zeros to `width`."""
        if not lines:
            return
        staged = self._queue.staging(len(lines) * (width + 1))
        words: IntArray = staged.numpy().reshape(len(lines), width + 1)
        words[:, 0] = list(lines)
        for out, line in zip(words, lines.values()):
            out[1 : 1 + len(line)] = line
            out[1 + len(line) :] = 0
        there = self._queue.upload(staged).view(len(lines), width + 1)
        target[:, :width].index_copy_(0, there[:, 0].long(), there[:, 1:])


def size_of(bucket: Bucket) -> BucketSize:
    """A bucket as the kernels of the row store know it."""
    return BucketSize(bucket.shape.num_rows, bucket.shape.num_tokens, bucket.num_logits, bucket.shape.num_shared)


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
