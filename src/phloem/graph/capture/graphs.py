"""Captured steps: one manager of CUDA graphs, one a bucket, in one memory pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from phloem.graph.capture.buckets import Bucket

MAX_GRAPHS = 256
"""Graphs kept at once; past that, steps of new buckets run eagerly."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step leaves on the device: `token_ids` [L] int32, and `logits` [L, V] float32, which a captured step does
    not keep (None)."""

    token_ids: torch.Tensor
    logits: torch.Tensor | None


Body = Callable[[Bucket], StepOutput]
"""Launches one step: everything between the packed plan on the device and the sampled tokens."""


class Steps(Protocol):
    """Runs the steps of a body."""

    @property
    def is_warm(self) -> bool:
        """Whether the last step was a captured one, or nothing is ever captured."""

    def run(self, bucket: Bucket) -> StepOutput:
        """Launch a step; the logits are dropped."""

    def run_eagerly(self, bucket: Bucket) -> StepOutput:
        """Launch a step whose logits are wanted."""

    def shrink(self) -> None:
        """Give back what memory can be done without."""


class EagerSteps:
    """Every step is launched call by call."""

    is_warm = True

    def __init__(self, body: Body) -> None:
        self._body = body

    def run(self, bucket: Bucket) -> StepOutput:
        return self._body(bucket)

    def run_eagerly(self, bucket: Bucket) -> StepOutput:
        return self._body(bucket)

    def shrink(self) -> None:
        """There is nothing to give back."""


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    token_ids: torch.Tensor


class CapturedSteps:
    """A bucket's first step runs eagerly, which also compiles its kernels; its second is captured and replayed, as are
    all that follow.

    Graphs never run at the same time, so they share one pool; of a step's tensors only the sampled tokens stay in it.
    Must be called on the stream that all steps run on.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Bucket, _Captured] = {}
        self._seen: set[Bucket] = set()
        self._can_capture = True
        self._last_was_captured = False

    @property
    def is_warm(self) -> bool:
        return self._last_was_captured or not self._can_capture

    def run(self, bucket: Bucket) -> StepOutput:
        captured = self._graphs.get(bucket)
        if captured is None:
            if not self._wants_capture(bucket):
                self._last_was_captured = False
                return self._body(bucket)
            captured = self._graphs[bucket] = self._capture(bucket)
        self._last_was_captured = True
        captured.graph.replay()
        return StepOutput(captured.token_ids, None)

    def run_eagerly(self, bucket: Bucket) -> StepOutput:
        return self._body(bucket)

    def shrink(self) -> None:
        """Drop all graphs, and capture no more."""
        torch.cuda.synchronize()
        self._graphs.clear()
        self._can_capture = False
        torch.cuda.empty_cache()

    def _wants_capture(self, bucket: Bucket) -> bool:
        is_known = bucket in self._seen
        self._seen.add(bucket)
        return is_known and self._can_capture and len(self._graphs) < MAX_GRAPHS

    def _capture(self, bucket: Bucket) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            token_ids = self._body(bucket).token_ids
        finally:
            graph.capture_end()
        return _Captured(graph, token_ids)
