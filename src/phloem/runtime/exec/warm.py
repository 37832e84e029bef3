"""Compiling a model's kernels before its first step: each distinct call once, on made-up inputs, several at a time.

A step needs a dozen kernels, each of which takes up to a second to compile, mostly outside the interpreter's lock. What
only some requests need (cut distributions, penalties, masks, log-probabilities) is compiled after the start, by a
thread, on a stream of its own: the steps' stream may be recording.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from torch import fx

from phloem.graph.capture.buckets import MIN_CHUNKS, Bucket, Buckets, StepSizes
from phloem.graph.ir import StepGraph
from phloem.graph.lower import small
from phloem.graph.lower.cuda import CudaTarget
from phloem.graph.lower.device import call_function
from phloem.graph.ops.contract import Op, Spec
from phloem.kernels.triton.packed import HEADER_WORDS
from phloem.kernels.triton.row_tensors import RowTensors, StepTensors
from phloem.memory.pool.kv import KvPool
from phloem.runtime.exec.device_step import RowKernels, cut, size_of
from phloem.runtime.exec.queue import Queue

NUM_COMPILERS, NUM_LATER = 8, 3
FEW = 64
COMPILES_NOTHING = frozenset({"linear", "linear_fp8"})
"""Ops whose functions are library calls, or are left to the step that is measured."""

_log = logging.getLogger("phloem.exec")

Task = Callable[[], object]
T = TypeVar("T")
_DTYPES = {"float32": torch.float32, "int32": torch.int32}


def begin_device() -> None:
    """Make the driver's context and load triton and the matrix library on a thread: a second that the model's graph
    need not wait for."""

    def begin() -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        numbers = torch.zeros(64, 64, dtype=torch.bfloat16, device="cuda")
        torch.mm(numbers, numbers)
        from phloem.kernels.triton import sample  # noqa: F401 - triton's own import takes as long as the rest

    threading.Thread(target=begin, name="phloem-begin", daemon=True).start()


class KernelCompiler:
    """Makes up the calls that compile a model's kernels: inputs as a step would have them, of no meaning. Nothing is
    written but them."""

    def __init__(
        self,
        step: StepGraph,
        target: CudaTarget,
        *,
        kernels: RowKernels,
        tensors: StepTensors,
        buckets: Buckets,
        max_rows: int,
        vocab_size: int,
    ) -> None:
        device = target.device
        self._step, self._target, self._kernels = step, target, kernels
        self._tensors, self._buckets, self._max_rows = tensors, buckets, max_rows
        tensors.slots.fill_(-1)
        self._store = RowTensors.empty(  # strides as the real one's: triton compiles for them
            max_rows=1,
            max_model_len=buckets.max_context_len,
            max_pages=tensors.block_table.shape[1],
            vocab_size=vocab_size,
            device=device,
        )
        self._logits = torch.zeros(1, vocab_size, device=device)
        self._nobody = torch.full((1,), -1, dtype=torch.int32, device=device)
        pool = KvPool(
            layers=step.layers[:1], num_pages=1, page_size=target.page_size, dtype=target.cache_type, device=device
        )
        self._cache = pool.layers[0]

    def needed(self) -> list[Task]:
        """Done, no kernel of a plain step of few chunks is left to compile, nor of the largest step."""
        buckets, max_rows = self._buckets, self._max_rows
        plan = torch.zeros(HEADER_WORDS + 2, dtype=torch.int32, device=self._target.device)  # no rows, no groups
        decode = buckets.of(StepSizes(max_rows, max_rows, max_rows, max_rows))
        mixed = buckets.of(StepSizes(1, max_rows + 1, max_rows, 0))
        graphs = [(self._step, decode), (self._step, mixed)]
        if (fused := self._target.fused(self._step)) is not None:
            graphs.append((fused, buckets.of(StepSizes(1, 1, 1, 1))))
        tasks: list[Task] = list(self._attention(max_rows))
        for graph, bucket in graphs:
            tasks.append(partial(self._kernels.fill_inputs, plan, self._store, self._tensors, size_of(bucket)))
            tasks += self._calls(graph, bucket)
        tasks.append(partial(self._kernels.apply_plan, plan, self._store))
        tasks.append(partial(self._kernels.sample, self._logits, self._nobody, self._store, truncates=False))
        return tasks

    def rare(self) -> list[Task]:
        """What only some requests need, small steps of two rows, and attention of other numbers of chunks."""
        kernels, logits, nobody, store = self._kernels, self._logits, self._nobody, self._store
        tasks: list[Task] = [
            partial(kernels.sample, logits, nobody, store, truncates=True),
            partial(kernels.report, logits, nobody, nobody, store),
            partial(kernels.adjust, logits, nobody, store),
        ]
        if small.max_rows(self._step) > 1 and (fused := self._target.fused(self._step)) is not None:
            tasks += self._calls(fused, self._buckets.of(StepSizes(2, 2, 2, 2)))
        num_chunks = 2 * MIN_CHUNKS
        while num_chunks < self._max_rows:
            tasks += self._attention(num_chunks)
            num_chunks *= 2
        return tasks

    def _attention(self, num_chunks: int) -> Iterator[Task]:
        """That of a step of so many chunks: its kernel is compiled for a power of two of rows."""
        bucket = self._buckets.of(StepSizes(num_chunks, 2 * num_chunks, num_chunks, 0))
        return self._calls(self._step, bucket, only=frozenset({"paged_attention"}))

    def _calls(self, step: StepGraph, bucket: Bucket, *, only: Container[str] | None = None) -> Iterator[Task]:
        """One call of every op of a graph that differs in more than its layer."""
        seen = set()
        for node in step.graph.nodes:
            if not isinstance(node.target, Op):
                continue
            name = node.target.name
            if name in COMPILES_NOTHING or (only is not None and name not in only):
                continue
            key = (name, *(str(each.meta["spec"]) if isinstance(each, fx.Node) else each for each in node.args))
            if key not in seen:
                seen.add(key)
                yield partial(self._call, node.target, node.args, bucket)

    def _call(self, op: Op, values: Sequence[Any], bucket: Bucket) -> None:
        """One call of an op. Its arguments, which may be as large as a weight, live as long as it takes."""
        inputs = cut(self._tensors, bucket.shape, bucket.num_logits)
        layer = self._step.layers[0]
        cache = self._cache.view(-1, 2, self._target.page_size, layer.num_kv_heads, layer.head_dim)
        sizes = {"T": bucket.shape.num_tokens, "L": bucket.num_logits}
        max_table = FEW if op.name == "embed" else None
        arguments = [_argument(each, inputs, cache, sizes, self._target, max_table) for each in values]
        call_function(op, self._target.functions, arguments, bucket.shape)()


def compile_now(tasks: Sequence[Task], *, queue: Queue, meanwhile: Callable[[], T]) -> T:
    """Run the tasks, several at a time, and `meanwhile` on this thread; its result, when all is done."""

    def run(task: Task) -> None:
        with torch.inference_mode(), queue.on():
            task()

    with ThreadPoolExecutor(NUM_COMPILERS, thread_name_prefix="phloem-compile") as compilers:
        compiled = [compilers.submit(run, task) for task in tasks]
        result = meanwhile()
        for future in compiled:
            future.result()
    return result


class CompileLater:
    """Runs tasks on a few threads that nobody waits for, on streams of their own: the steps' may be recording."""

    def __init__(self, tasks: Sequence[Task], *, device: torch.device) -> None:
        self._device = device
        self._is_over = threading.Event()
        shares = [tasks[first::NUM_LATER] for first in range(NUM_LATER)]
        self._threads = [threading.Thread(target=self._run, args=(share,), daemon=True) for share in shares]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Begin nothing more; wait for what is being compiled, seconds at most."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, tasks: Sequence[Task]) -> None:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for task in tasks:
            if self._is_over.is_set():
                return
            try:
                with torch.inference_mode(), torch.cuda.stream(stream):
                    task()
            except torch.OutOfMemoryError:
                _log.info("too little memory to compile a kernel ahead; it is compiled when it is needed")


def _argument(
    value: Any,
    inputs: Mapping[str, torch.Tensor],
    cache: torch.Tensor,
    sizes: Mapping[str, int],
    target: CudaTarget,
    max_table: int | None,
) -> Any:
    """What a call gets instead of the value of a node; of a table, `max_table` rows."""
    if not isinstance(value, fx.Node):
        return value
    name = str(value.target)
    if value.op == "placeholder":
        return inputs.get(name, cache)
    spec = value.meta["spec"]
    if isinstance(spec, tuple):
        spec = spec[0]
    assert isinstance(spec, Spec)
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
    if value.op == "get_attr":
        dtype = torch.float32 if name == "inv_freq" else target.activation
        shape = [min(shape[0], max_table or shape[0]), *shape[1:]]
    else:
        dtype = _DTYPES.get(spec.dtype, target.activation)
    return torch.zeros(shape, dtype=dtype, device=target.device)
