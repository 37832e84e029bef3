"""A worker on the GPU: graph, weights, a measurement of what steps take, the caches that fit, and the row store."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import msgspec
import torch

from phloem.core.clock import MonotonicClock
from phloem.core.errors import ConfigError
from phloem.graph.compile import compile_graph
from phloem.graph.ir import StepGraph
from phloem.graph.lower.cuda import CudaTarget, DeviceChoices, pick_target
from phloem.graph.lower.device_weights import type_of
from phloem.memory.budget import DeviceBytes, PageBudget, solve_pages
from phloem.memory.pool.kv import KvPool
from phloem.models.definition import ModelDefinition
from phloem.runtime.exec.build_device import (
    DeviceLimits,
    TritonRowKernels,
    captured_steps,
    device_worker,
    eager_steps,
    measure,
    row_store,
    step_tensors,
)
from phloem.runtime.exec.built import BuiltWorker, Report, StepBounds, built, timed
from phloem.runtime.exec.queue import CudaQueue
from phloem.runtime.exec.warm import CompileLater, KernelCompiler, compile_now
from phloem.runtime.grammar.grammars import Grammars


def build_on_cuda(
    definition: ModelDefinition,
    choices: DeviceChoices,
    *,
    max_model_len: int | None,
    memory_gb: float | None,
    bounds: StepBounds,
    overlap_depth: int,
    report: Report,
    grammars: Grammars,
    captures: bool = True,
) -> BuiltWorker:
    """From a definition to a worker on the GPU; CallerErrors name what to change. `captures` off: no CUDA graphs."""
    with timed("build graph", report):
        step = compile_graph(definition, choices.passes)
        target = pick_target(step, choices)
    queue = CudaQueue(target.device)
    expect_room(step, target, definition.checkpoint.path, free_bytes=torch.cuda.mem_get_info(target.device)[0])
    kernels = TritonRowKernels(page_size=choices.page_size)
    limits = DeviceLimits(
        max_rows=bounds.max_running, max_step_tokens=bounds.max_step_tokens, page_size=choices.page_size,
        max_model_len=max_model_len or definition.max_context, deterministic=choices.deterministic,
    )  # fmt: skip
    with timed("weights, kernels", report):
        compiler = KernelCompiler(
            step, target, kernels=kernels, tensors=step_tensors(limits, target.device), buckets=limits.buckets,
            max_rows=limits.max_rows, vocab_size=definition.vocab_size,
        )  # fmt: skip
        torch.cuda.synchronize()  # its tensors were made on another stream
        load = partial(target.load, step, definition.checkpoint)
        capture = compile_now(compiler.needed(), queue=queue, meanwhile=load)
    store = row_store(limits, vocab_size=definition.vocab_size, device=target.device)
    with timed("measure a step", report):
        memory = measure(capture, target, layers=definition.layers, limits=limits, queue=queue)
    with timed("KV pool", report):
        budget, pool = _pool(step, target, memory, limits=limits, max_model_len=max_model_len, memory_gb=memory_gb,
                             model_context=definition.max_context)  # fmt: skip
    worker = device_worker(
        program=capture(caches=pool.layers),
        pool=pool,
        kernels=kernels,
        store=store,
        queue=queue,
        make_steps=captured_steps if captures else eager_steps,
        limits=replace(limits, max_model_len=budget.max_model_len),
        vocab_size=definition.vocab_size,
        end_token_ids=definition.eos_ids,
        clock=MonotonicClock(),
        grammars=grammars,
    )
    torch.cuda.synchronize()  # steps, and what compiles, run on other streams than made all this
    worker.closes(CompileLater(compiler.rare(), device=target.device))
    in_words = msgspec.structs.replace(budget, arithmetic=f"{memory.arithmetic}; {budget.arithmetic}")
    return built(worker, definition, in_words, bounds=bounds, backend=target.description,
                 overlap_depth=overlap_depth, grammars=grammars)  # fmt: skip


def _pool(
    step: StepGraph,
    target: CudaTarget,
    memory: DeviceBytes,
    *,
    limits: DeviceLimits,
    model_context: int,
    max_model_len: int | None,
    memory_gb: float | None,
) -> tuple[PageBudget, KvPool]:
    """As many pages as the measured memory leaves room for."""
    budget = solve_pages(
        layers=step.layers,
        page_size=limits.page_size,
        bytes_per_element=target.cache_type.itemsize,
        model_context=model_context,
        max_model_len=max_model_len,
        max_running=limits.max_rows,
        free_bytes=memory.for_cache,
        memory_gb=memory_gb,
        free_fraction=1.0,
    )
    pool = KvPool(
        layers=step.layers,
        num_pages=budget.num_pages,
        page_size=limits.page_size,
        dtype=target.cache_type,
        device=target.device,
    )
    return budget, pool


def expect_room(step: StepGraph, target: CudaTarget, model: Path, *, free_bytes: int) -> None:
    """ConfigError when the weights alone do not fit on the device, before any is loaded."""
    needed_bytes = sum(
        prod(recipe.shape) * type_of(name, recipe, target.activation).itemsize for name, recipe in step.recipes.items()
    )
    if needed_bytes > free_bytes:
        raise ConfigError(
            f"too little memory: the weights of {model} need {needed_bytes / 1e9:.1f} GB on the device, "
            f"{free_bytes / 1e9:.1f} GB are free; choose a smaller model",
            field="model",
        )
