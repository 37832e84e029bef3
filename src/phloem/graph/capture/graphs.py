"""Captured steps: one manager of CUDA graphs, one a bucket, in one memory pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from phloem.core.clock import Clock
from phloem.graph.capture.buckets import Bucket

MAX_GRAPHS = 256
"""Graphs kept at once; past that, steps of new buckets run eagerly."""
PATIENCE = 4
"""Between two captures under traffic goes by at least so many times what the first of them took."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step leaves on the device: `token_ids` [L] int32; `reports` [L, words] int32, of a bucket that reports;
    and `logits` [L, V] float32, which a captured step does not keep (None)."""

    token_ids: torch.Tensor
    reports: torch.Tensor | None
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

    def prepare(self) -> bool:
        """Make one bucket that was asked for faster; False if there is nothing to do. For an idle engine."""

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

    def prepare(self) -> bool:
        return False

    def shrink(self) -> None:
        """There is nothing to give back."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Launches that can be repeated, and where their outputs will be."""

    replay: Callable[[], object]
    output: StepOutput


class Recorder(Protocol):
    """Records what a body launches for a bucket, without running it."""

    def record(self, body: Body, bucket: Bucket) -> Recorded: ...

    def finish(self) -> None:
        """Wait until no recording runs any more."""

    def release(self) -> None:
        """Give back the memory of recordings that were dropped."""


class CudaRecorder:
    """CUDA graphs in one memory pool: they never run at the same time, and of a step's tensors only its small outputs
    stay."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, body: Body, bucket: Bucket) -> Recorded:
        """On the current stream, which all steps run on."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            output = body(bucket)
        finally:
            graph.capture_end()
        return Recorded(graph.replay, StepOutput(output.token_ids, output.reports, None))

    def finish(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        torch.cuda.empty_cache()


class CapturedSteps:
    """A bucket's first step runs eagerly, which also compiles its kernels, and asks for a graph. An idle engine
    captures what was asked for most (`prepare`). Traffic that leaves no gaps gets its graphs, too: a step whose bucket
    comes again is captured on the spot, but not more often than PATIENCE says.
    """

    def __init__(self, body: Body, *, recorder: Recorder, clock: Clock) -> None:
        self._body = body
        self._recorder = recorder
        self._clock = clock
        self._graphs: dict[Bucket, Recorded] = {}
        self._wanted: Counter[Bucket] = Counter()
        self._may_capture_at_s = float("-inf")
        self._can_capture = True
        self._last: Bucket | None = None

    @property
    def is_warm(self) -> bool:
        return self._last in self._graphs or not self._can_capture

    def run(self, bucket: Bucket) -> StepOutput:
        self._last = bucket
        if bucket not in self._graphs:
            if bucket not in self._wanted or self._clock.now_s() < self._may_capture_at_s:
                if self._can_capture and len(self._graphs) < MAX_GRAPHS:
                    self._wanted[bucket] += 1
                return self._body(bucket)
            self._capture(bucket)
        recorded = self._graphs[bucket]
        recorded.replay()
        return recorded.output

    def run_eagerly(self, bucket: Bucket) -> StepOutput:
        return self._body(bucket)

    def prepare(self) -> bool:
        if not self._wanted:
            return False
        ((bucket, _),) = self._wanted.most_common(1)
        self._capture(bucket)
        return True

    def shrink(self) -> None:
        """Drop all graphs, and capture no more."""
        self._recorder.finish()
        self._graphs.clear()
        self._wanted.clear()
        self._can_capture = False
        self._recorder.release()

    def _capture(self, bucket: Bucket) -> None:
        """Record what the bucket's steps launch; nothing runs."""
        began_s = self._clock.now_s()
        self._graphs[bucket] = self._recorder.record(self._body, bucket)
        del self._wanted[bucket]
        ended_s = self._clock.now_s()
        self._may_capture_at_s = ended_s + PATIENCE * (ended_s - began_s)
