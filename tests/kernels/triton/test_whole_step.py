"""The device worker with every Triton kernel in place, against the CPU worker on the references, step by step."""

from __future__ import annotations

import random

import pytest
import torch

from phloem.core.request import SamplingParams
from phloem.graph.compile import compile_graph
from phloem.graph.lower.cuda import CudaTarget
from phloem.models.catalog import define_dummy
from phloem.runtime.exec.build_device import DeviceLimits, TritonRowKernels, step_tensors
from phloem.runtime.exec.warm import KernelCompiler
from phloem.runtime.sched.build import SchedulerSettings
from tests.runtime.exec import twins

SETTINGS = SchedulerSettings(
    num_pages=24, page_size=twins.PAGE_SIZE, max_rows=4, max_step_tokens=32, max_model_len=64, policy="fcfs"
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu does this on the GPU")
def test_a_served_batch_is_what_the_references_say() -> None:
    """Red when a launcher takes other arguments than the step gives, padding writes anywhere, or a token is lost."""
    from phloem.kernels.triton.table import functions_on

    host = torch.device("cpu")
    target = CudaTarget(torch.float32, host, twins.PAGE_SIZE, functions_on(host), "interpreted")
    ours = twins.host_device_worker(SETTINGS, target=target, kernels=TritonRowKernels(page_size=twins.PAGE_SIZE))
    chance = random.Random(0)
    requests = [
        (tuple(chance.randrange(3, 320) for _ in range(length)), SamplingParams(max_tokens=3, ignore_eos=True, **kind))
        for length, kind in (
            (5, {"temperature": 0.0}),
            (20, {"temperature": 0.8, "seed": 4}),
            (37, {"temperature": 0.9, "seed": 5, "top_k": 9}),
        )
    ]
    twins.run(twins.TwinWorker(ours, twins.cpu_worker(SETTINGS)), SETTINGS, requests, depth=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu does this on the GPU")
def test_every_kernel_of_a_step_has_a_task_that_compiles_it() -> None:
    """Red when a launcher refuses the inputs that a compiling call makes up, or an op has no such call."""
    from phloem.kernels.triton.table import functions_on

    calls: list[str] = []

    def counted(name: str):
        def call(*arguments, **named):
            calls.append(name)
            return interpreted[name](*arguments, **named)

        return call

    host = torch.device("cpu")
    interpreted = functions_on(host)
    functions = {name: counted(name) for name in interpreted}
    limits = DeviceLimits(max_rows=20, max_step_tokens=64, max_model_len=64, page_size=twins.PAGE_SIZE)
    compiler = KernelCompiler(
        compile_graph(define_dummy(twins.MODEL)),
        CudaTarget(torch.float32, host, twins.PAGE_SIZE, functions, "interpreted"),
        kernels=TritonRowKernels(page_size=twins.PAGE_SIZE),
        tensors=step_tensors(limits, host),
        buckets=limits.buckets,
        max_rows=20,
        vocab_size=320,
    )
    for task in compiler.needed():
        task()
    assert set(calls) == set(interpreted) - {"linear", "linear_fp8"}
    del calls[:]
    for task in compiler.rare():
        task()
    assert "paged_attention" in calls, "of more chunks"
