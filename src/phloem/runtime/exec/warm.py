"""Compiling a model's kernels before its first step: each distinct call once, on made-up inputs, several at a time.

A step needs a dozen kernels, each of which takes up to a second to compile, mostly outside the interpreter's lock. What
only some requests need (cut distributions, penalties, masks, log-probabilities) is compiled after the start, by a
thread, on a stream of its own: the steps' stream may be recording.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from phloem.graph.capture.buckets import Bucket, Buckets, StepSizes
from phloem.graph.ir import StepGraph
from phloem.graph.lower.cuda import CudaTarget
from phloem.graph.lower.device import call_function
from phloem.graph.ops.contract import Op, Spec
from phloem.kernels.triton.packed import HEADER_WORDS
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors
from phloem.memory.pool.kv import KvPool
from phloem.runtime.exec.device_step import RowKernels, cut
from phloem.runtime.exec.queue import Queue

NUM_COMPILERS = 8
COMPILES_NOTHING = frozenset({"linear", "linear_fp8"})
"""Ops whose functions are library calls, or are left to the step that is measured."""

Task = Callable[[], object]
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


def compile_tasks(
    step: StepGraph,
    target: CudaTarget,
    *,
    kernels: RowKernels,
    tensors: StepTensors,
    buckets: Buckets,
    max_rows: int,
    vocab_size: int,
    queue: Queue,
) -> Sequence[Task]:
    """Tasks that may run at the same time; done, no kernel of a plain step is left to compile."""
    device = target.device
    store = RowTensors.empty(max_rows=1, max_model_len=1, max_pages=1, device=device)
    plan = torch.zeros(HEADER_WORDS + 2, dtype=torch.int32, device=device)  # no rows, no groups
    logits = torch.zeros(1, vocab_size, device=device)
    nobody = torch.full((1,), -1, dtype=torch.int32, device=device)
    tensors.slots.fill_(-1)
    pool = KvPool(
        layers=step.layers[:1], num_pages=1, page_size=target.page_size, dtype=target.cache_type, device=device
    )
    decode = buckets.of(StepSizes(max_rows, max_rows, max_rows, max_rows))
    mixed = buckets.of(StepSizes(1, max_rows + 1, max_rows, 0))

    def within(task: Task) -> Task:
        def run() -> None:
            with torch.inference_mode(), queue.on():
                task()

        return run

    tasks: list[Task] = []
    graphs = [(step, decode), (step, mixed)]
    if (fused := target.fused(step)) is not None:
        graphs.append((fused, buckets.of(StepSizes(1, 1, 1, 1))))
    for graph, bucket in graphs:
        shape = bucket.shape
        size = BucketSize(shape.num_rows, shape.num_tokens, bucket.num_logits, shape.num_shared)
        tasks.append(partial(kernels.fill_inputs, plan, store, tensors, size))
        tasks += _op_tasks(graph, target, bucket, tensors, pool.layers[0])
    tasks.append(partial(kernels.apply_plan, plan, store))
    tasks.append(partial(kernels.sample, logits, nobody, store, truncates=False))
    return [within(task) for task in tasks]


def compile_rare(kernels: RowKernels, *, vocab_size: int, device: torch.device) -> None:
    """Compile, on a thread, what draws from cut distributions, changes logits and reports log-probabilities."""

    def compile_all() -> None:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            store = RowTensors.empty(max_rows=1, max_model_len=1, max_pages=1, vocab_size=vocab_size, device=device)
            logits = torch.zeros(1, vocab_size, device=device)
            nobody = torch.full((1,), -1, dtype=torch.int32, device=device)
            kernels.sample(logits, nobody, store, truncates=True)
            kernels.adjust(logits, nobody, store)
            kernels.report(logits, nobody, nobody, store)

    threading.Thread(target=compile_all, name="phloem-rare", daemon=True).start()


def _op_tasks(
    step: StepGraph, target: CudaTarget, bucket: Bucket, tensors: StepTensors, cache: torch.Tensor
) -> Iterator[Task]:
    """One call of every op of the graph that differs in more than its layer."""
    inputs = cut(tensors, bucket.shape, bucket.num_logits)
    layer = step.layers[0]
    cache = cache.view(cache.shape[0], 2, target.page_size, layer.num_kv_heads, layer.head_dim)
    sizes = {"T": bucket.shape.num_tokens, "L": bucket.num_logits}
    seen = set()
    for node in step.graph.nodes:
        if not isinstance(node.target, Op) or node.target.name in COMPILES_NOTHING:
            continue
        key = (node.target.name, *(str(each.meta["spec"]) if isinstance(each, fx.Node) else each for each in node.args))
        if key not in seen:
            seen.add(key)
            arguments = [_argument(each, inputs, cache, sizes, target) for each in node.args]
            yield call_function(node.target, target.functions, arguments, bucket.shape)


def _argument(
    value: Any, inputs: Mapping[str, torch.Tensor], cache: torch.Tensor, sizes: Mapping[str, int], target: CudaTarget
) -> Any:
    """What a call gets instead of the value of a node."""
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
        shape = [min(shape[0], 64), *shape[1:]] if len(shape) > 1 else shape  # few rows of a table will do
    else:
        dtype = _DTYPES.get(spec.dtype, target.activation)
    return torch.zeros(shape, dtype=dtype, device=target.device)
