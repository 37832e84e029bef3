"""From a model's files to a worker that can apply plans: definition, graph, memory, program, rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import torch

from phloem.core.clock import MonotonicClock
from phloem.core.errors import ConfigError
from phloem.graph.capture.inputs import StepInputs, StepLimits
from phloem.graph.checkpoint.open import open_checkpoint
from phloem.graph.compile import compile_graph
from phloem.graph.ir import StepGraph
from phloem.graph.lower import cuda
from phloem.graph.lower.cpu import pick_target
from phloem.graph.lower.expert_parallel import exchange_experts
from phloem.graph.lower.program import Collectives
from phloem.memory.budget import PageBudget, free_host_bytes, solve_pages
from phloem.memory.pool.kv import KvPool
from phloem.models.catalog import define_dummy, define_model
from phloem.models.definition import ModelDefinition
from phloem.parallel.comm import NOBODY, Comm, Company
from phloem.parallel.mesh import ALONE, Place
from phloem.runtime.exec.build_cuda import build_on_cuda
from phloem.runtime.exec.built import BuiltWorker, Report, StepBounds, built, timed
from phloem.runtime.exec.fingerprint import fingerprint
from phloem.runtime.exec.rows import RowStore
from phloem.runtime.exec.warm import begin_device
from phloem.runtime.exec.worker import Worker
from phloem.runtime.grammar.grammars import Grammars, no_vocabulary
from phloem.runtime.grammar.vocabulary import Vocabulary
from phloem.runtime.handover.pages import PageBytes

ON_CPU, ON_GPU = StepBounds(64, 1024), StepBounds(256, 8192)
"""What is asked of a device unless the caller says. A GPU's products take the same time for 1 and for 256 rows."""
UNQUANTIZED_BITS = {"F32": 32, "F16": 16, "BF16": 16}
QUANTIZED_BITS = {"int8": 8, "int4": 4}
"""Bits a number, without scales: a lower bound of what weights take in memory."""


def build_worker(
    *,
    model: Path | str,
    dtype: str,
    quantize: str,
    device: str,
    threads: int | None,
    max_model_len: int | None,
    memory_gb: float | None,
    page_size: int,
    max_running: int | None,
    max_step_tokens: int | None,
    overlap_depth: int | None,
    report: Report,
    tokenizer_json: Callable[[], str] | None = None,
    company: Company = NOBODY,
    kv_cache_dtype: str = "auto",
    deterministic: bool = False,
) -> BuiltWorker:
    """Everything between a checkpoint (a path, or "dummy:<name>") and a worker; CallerErrors name what to change.

    `device` "auto" is the GPU where torch finds one and it serves these options. `overlap_depth` None: 1 there, 0 on a
    CPU. `tokenizer_json` is called when the first constraint comes; without it none can be. In `company`: one rank.
    """
    num_threads = _set_threads(threads, company.place)
    is_on_gpu = runs_on_gpu(device=device, dtype=dtype, quantize=quantize, place=company.place)
    if is_on_gpu and torch.cuda.is_available():
        begin_device()
    bounds = (ON_GPU if is_on_gpu else ON_CPU).unless(max_running, max_step_tokens)
    with timed("open checkpoint", report):
        definition = _define(model, max_model_len)
    grammars = _grammars(definition, tokenizer_json)
    if is_on_gpu:
        choices = cuda.DeviceChoices(dtype=dtype, quantize=quantize, kv_cache_dtype=kv_cache_dtype,
                                     deterministic=deterministic, page_size=page_size)  # fmt: skip
        return build_on_cuda(
            definition,
            choices,
            max_model_len=max_model_len,
            memory_gb=memory_gb,
            bounds=bounds,
            overlap_depth=1 if overlap_depth is None else overlap_depth,
            report=report,
            grammars=grammars,
        )
    _expect_plain_cache(kv_cache_dtype)
    return _build_on_cpu(
        definition,
        dtype=dtype,
        quantize=quantize,
        num_threads=num_threads,
        max_model_len=max_model_len,
        memory_gb=memory_gb,
        page_size=page_size,
        bounds=bounds,
        overlap_depth=overlap_depth or 0,
        report=report,
        grammars=grammars,
        company=company,
    )


def runs_on_gpu(*, device: str, dtype: str, quantize: str, place: Place = ALONE) -> bool:
    """Whether a worker of these options is one on a GPU, or the refusal of one. ConfigError for ranks on GPUs."""
    if place.mesh.size > 1:
        if device == "cuda":
            raise ConfigError("--tp and --pp run on CPUs only so far; choose --device cpu", field="device")
        return False
    return device == "cuda" or (device == "auto" and cuda.serves(dtype=dtype, quantize=quantize))


def _build_on_cpu(
    definition: ModelDefinition,
    *,
    dtype: str,
    quantize: str,
    num_threads: int,
    max_model_len: int | None,
    memory_gb: float | None,
    page_size: int,
    bounds: StepBounds,
    overlap_depth: int,
    report: Report,
    grammars: Grammars,
    company: Company,
) -> BuiltWorker:
    _expect_room(definition, quantize=quantize, free_bytes=free_host_bytes())
    with timed("build graph", report):
        step = compile_graph(definition, place=company.place)
        target = pick_target(step, dtype=dtype, quantize=quantize, page_size=page_size, num_threads=num_threads)
    comm = company.meet(torch.device("cpu"))
    with timed("load weights", report):
        capture = target.load(step, definition.checkpoint, collectives(comm, target.activation))
    with timed("KV pool", report):
        budget = solve_pages(
            layers=step.layers,
            page_size=page_size,
            bytes_per_element=target.activation.itemsize,
            model_context=definition.max_context,
            max_model_len=max_model_len,
            max_running=bounds.max_running,
            free_bytes=free_host_bytes(),
            memory_gb=memory_gb,
        )
        budget = agreed(budget, comm)
        pool = _pool(step, budget.num_pages, page_size=page_size, dtype=target.activation)
    with timed("capture", report):
        inputs = StepInputs(StepLimits(bounds.max_step_tokens, bounds.max_running, budget.pages_per_sequence))
        program = capture(caches=pool.layers, inputs=inputs)
    rows = _rows(definition, budget, page_size=page_size, max_running=bounds.max_running, grammars=grammars)
    worker = Worker(
        program=program,
        pool=pool,
        rows=rows,
        clock=MonotonicClock(),
        overlap_depth=overlap_depth,
        samples=company.place.pipe.is_last,
        is_alone=company.place.mesh.size == 1,
        close_comm=comm.close,
    )
    made = built(worker, definition, budget, bounds=bounds, backend=target.description,
                 overlap_depth=overlap_depth, grammars=grammars)  # fmt: skip
    options = f"{target.description} {page_size} {budget.num_pages} {bounds}"
    layout = f"{type(target).__name__} {target.activation} {quantize}"
    return replace(
        made,
        as_rank=worker,
        fingerprint=fingerprint(definition.checkpoint, options=options),
        page_bytes=_page_bytes(pool, definition, layout) if company.place.mesh.size == 1 else None,
    )


def _page_bytes(pool: KvPool, definition: ModelDefinition, layout: str) -> PageBytes:
    """The pool's bytes where they lie. What computes them lays them out, so it is part of the fingerprint."""
    layers = [layer.view(torch.uint8).numpy() for layer in pool.layers]
    options = f"pages of {pool.page_size}, {pool.layers[0].dtype}, {layout}"
    mark = fingerprint(definition.checkpoint, options=options)
    return PageBytes(layers, page_size=pool.page_size, fingerprint=mark)


def _pool(step: StepGraph, num_pages: int, *, page_size: int, dtype: torch.dtype) -> KvPool:
    return KvPool(layers=step.layers, num_pages=num_pages, page_size=page_size, dtype=dtype, device=torch.device("cpu"))


def _grammars(definition: ModelDefinition, tokenizer_json: Callable[[], str] | None) -> Grammars:
    if tokenizer_json is None:
        return Grammars(no_vocabulary)
    return Grammars(lambda: Vocabulary(tokenizer_json(), definition.vocab_size, definition.eos_ids))


def collectives(comm: Comm, activation: torch.dtype) -> Collectives:
    """The functions behind ops that need other ranks."""
    exchange = partial(exchange_experts, exchange=comm)
    return {**comm.bound(activation), "moe_exchange": exchange}


def agreed(budget: PageBudget, comm: Comm) -> PageBudget:
    """The pool that every rank can hold: plans name the same pages everywhere."""
    return msgspec.structs.replace(
        budget, num_pages=comm.agree(budget.num_pages), max_model_len=comm.agree(budget.max_model_len)
    )


def _expect_plain_cache(kv_cache_dtype: str) -> None:
    if kv_cache_dtype != "auto":
        raise ConfigError(
            f"--kv-cache-dtype {kv_cache_dtype} is served on a GPU only; choose auto", field="kv_cache_dtype"
        )


def _set_threads(threads: int | None, place: Place) -> int:
    """Threads of the kernels and of torch; the ranks of a machine divide its cores among them."""
    available = max(1, len(os.sched_getaffinity(0)) // place.mesh.size)
    if threads is not None and threads > available:
        raise ConfigError(
            f"--threads {threads} is more than the {available} cores this process may use", field="threads"
        )
    torch.set_num_threads(threads or available)
    return threads or available


def _rows(
    definition: ModelDefinition, budget: PageBudget, *, page_size: int, max_running: int, grammars: Grammars
) -> RowStore:
    return RowStore(
        max_rows=max_running,
        max_model_len=budget.max_model_len,
        page_size=page_size,
        vocab_size=definition.vocab_size,
        end_token_ids=definition.eos_ids,
        grammars=grammars,
    )


def _define(model: Path | str, max_model_len: int | None) -> ModelDefinition:
    definition = define_dummy(model) if isinstance(model, str) else define_model(open_checkpoint(model))
    if max_model_len is not None and max_model_len > definition.max_context:
        raise ConfigError(
            f"--max-model-len {max_model_len} is more than the {definition.max_context} tokens the model was made for",
            field="max_model_len",
        )
    return definition


def _expect_room(definition: ModelDefinition, *, quantize: str, free_bytes: int) -> None:
    """ConfigError when the weights alone do not fit: found before the machine starts to swap, or kills a process."""
    needed_bytes = 0.0
    for entry in definition.checkpoint.tensors.entries.values():
        kept_share = QUANTIZED_BITS.get(quantize, 64) / UNQUANTIZED_BITS.get(entry.encoding, 1)
        needed_bytes += entry.num_bytes * min(1.0, kept_share)
    if needed_bytes > free_bytes:
        raise ConfigError(
            f"too little memory: the weights of {definition.checkpoint.path} need {needed_bytes / 1e9:.1f} GB, "
            f"{free_bytes / 1e9:.1f} GB are free; choose a smaller model, or fewer bits with --quantize",
            field="model",
        )
