"""A worker on a device: weights, measured memory, caches, row store and the step that ties them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from phloem.core.clock import Clock, MonotonicClock
from phloem.graph.capture.buckets import Bucket, Buckets, StepSizes, max_batch_rows, max_logit_lines, round_tokens
from phloem.graph.capture.graphs import Body, CapturedSteps, CudaRecorder, EagerSteps, Steps
from phloem.graph.lower.cuda import CudaTarget, DeviceCapture
from phloem.graph.lower.device import DeviceProgram
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors
from phloem.memory.budget import DeviceBytes
from phloem.memory.pool.kv import KvPool
from phloem.memory.spec import LayerState
from phloem.runtime.exec.constrained import ConstrainedRows
from phloem.runtime.exec.cuda_worker import CudaWorker
from phloem.runtime.exec.device_rows import RowMirror, num_device_rows
from phloem.runtime.exec.device_step import DeviceStep, RowKernels, cut
from phloem.runtime.exec.queue import CudaQueue, Queue
from phloem.runtime.exec.sampling.state import Grammars


@dataclass(frozen=True, kw_only=True)
class DeviceLimits:
    """What sizes the buffers of a device worker."""

    max_rows: int
    max_step_tokens: int
    max_model_len: int
    page_size: int
    deterministic: bool = False

    @property
    def max_pages(self) -> int:
        """Pages of the longest sequence, and one for the token after it."""
        return -(-self.max_model_len // self.page_size) + 1

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest bucket."""
        return round_tokens(max(self.max_step_tokens, max_batch_rows(self.max_rows)))

    @property
    def buckets(self) -> Buckets:
        """The sizes that steps are padded to."""
        return Buckets(self.max_tokens, self.max_model_len, self.deterministic)


class TritonRowKernels:
    """`RowKernels` by kernels/triton."""

    def __init__(self, *, page_size: int) -> None:
        from phloem.kernels.triton import adjust, report, rows, sample

        self._page_size = page_size
        self._fill: Callable[..., None] = rows.fill_inputs
        self._sample: Callable[..., torch.Tensor] = sample.sample
        self.apply_plan: Callable[[torch.Tensor, RowTensors], None] = rows.apply_plan
        self.adjust: Callable[[torch.Tensor, torch.Tensor, RowTensors], None] = adjust.adjust
        self.report: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, RowTensors], torch.Tensor] = report.report

    def fill_inputs(self, plan: torch.Tensor, store: RowTensors, step: StepTensors, size: BucketSize) -> None:
        self._fill(plan, store, step, size, page_size=self._page_size)

    def sample(
        self, logits: torch.Tensor, line_rows: torch.Tensor, store: RowTensors, *, truncates: bool
    ) -> torch.Tensor:
        return self._sample(logits, line_rows, store, truncates=truncates)


def device_worker(
    *,
    program: DeviceProgram,
    pool: KvPool,
    kernels: RowKernels,
    store: RowTensors,
    queue: Queue,
    make_steps: Callable[[Body], Steps],
    limits: DeviceLimits,
    vocab_size: int,
    end_token_ids: tuple[int, ...],
    clock: Clock,
    grammars: Grammars | None = None,
) -> CudaWorker:
    """The worker around a program whose caches are `pool`'s."""
    device = pool.layers[0].device
    step = DeviceStep(
        program=program,
        kernels=kernels,
        queue=queue,
        store=store,
        inputs=step_tensors(limits, device),
        buckets=limits.buckets,
        make_steps=make_steps,
    )
    mirror = RowMirror(max_rows=limits.max_rows, vocab_size=vocab_size, end_token_ids=end_token_ids)
    constrained = ConstrainedRows(vocab_size=vocab_size, grammars=grammars)
    return CudaWorker(step=step, pool=pool, mirror=mirror, constrained=constrained, queue=queue, clock=clock)


def row_store(limits: DeviceLimits, *, vocab_size: int, device: torch.device) -> RowTensors:
    """Room for every row, zeroed."""
    return RowTensors.empty(
        max_rows=num_device_rows(limits.max_rows),
        max_model_len=limits.max_model_len,
        max_pages=limits.max_pages,
        vocab_size=vocab_size,
        device=device,
    )


def step_tensors(limits: DeviceLimits, device: torch.device) -> StepTensors:
    """The static inputs of a step, zeroed."""
    tokens, rows, lines = limits.max_tokens, max_batch_rows(limits.max_rows), max_logit_lines(limits.max_tokens)

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    return StepTensors(
        token_ids=zeros(tokens),
        positions=zeros(tokens),
        slots=zeros(tokens),
        query_start=zeros(rows + 1),
        context_len=zeros(rows),
        block_table=zeros(rows, limits.max_pages),
        logit_rows=zeros(lines),
        line_rows=zeros(lines),
        shared_start=zeros(rows + 1),
        shared_rows=zeros(rows),
        shared_pages=zeros(rows),
    )


def captured_steps(body: Body) -> Steps:
    """Steps as CUDA graphs, as far as that pays."""
    return CapturedSteps(body, recorder=CudaRecorder(), clock=MonotonicClock())


def eager_steps(body: Body) -> Steps:
    """Steps launch by launch."""
    return EagerSteps(body)


def measure(
    capture: DeviceCapture,
    target: CudaTarget,
    *,
    layers: tuple[LayerState, ...],
    limits: DeviceLimits,
    queue: CudaQueue,
) -> DeviceBytes:
    """Run the largest steps there can be over a pool of one page, and see what they take. Compiles their kernels."""
    pool = KvPool(layers=layers, num_pages=1, page_size=limits.page_size, dtype=target.cache_type, device=target.device)
    program = capture(caches=pool.layers)
    tensors = step_tensors(limits, target.device)
    buckets = limits.buckets
    store = RowTensors.empty(max_rows=1, max_model_len=1, max_pages=1, device=target.device)
    kernels = TritonRowKernels(page_size=limits.page_size)
    num_rows, chunk = limits.max_rows, min(limits.max_step_tokens, limits.max_model_len)
    with queue.on():
        tensors.slots.fill_(-1)
        tensors.line_rows.fill_(-1)
        tensors.query_start[1:] = chunk
        tensors.context_len[0] = chunk
        whole = buckets.of(StepSizes(num_rows, limits.max_step_tokens, num_rows, 0))
        peaks = [_peak(program, tensors, store, kernels, whole)]
        tensors.query_start[: num_rows + 1] = torch.arange(num_rows + 1)
        tensors.query_start[num_rows:] = num_rows
        tensors.context_len[:num_rows] = 1
        peaks.append(
            _peak(program, tensors, store, kernels, buckets.of(StepSizes(num_rows, num_rows, num_rows, num_rows)))
        )
    queue.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(target.device)
    return DeviceBytes(total=total, free=free, step=max(peaks))


def _peak(program: DeviceProgram, tensors: StepTensors, store: RowTensors, kernels: RowKernels, bucket: Bucket) -> int:
    """Bytes that one step takes at its worst moment, as the allocator counts them."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    logits = program.run(cut(tensors, bucket.shape, bucket.num_logits), bucket.shape)
    kernels.sample(logits, tensors.line_rows[: bucket.num_logits], store, truncates=bucket.truncates)
    del logits
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
