"""Building for a device: what is refused before anything large happens, and what "auto" means without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from phloem.core.errors import ConfigError
from phloem.graph.compile import PASSES, compile_graph
from phloem.graph.lower.cuda import reference_target
from phloem.graph.passes.quantize_fp8 import quantize_fp8
from phloem.models.catalog import define_dummy
from phloem.runtime.exec.build import build_worker
from phloem.runtime.exec.build_cuda import expect_room
from phloem.runtime.exec.worker import Worker

OPTIONS = {
    "model": "dummy:qwen3-tiny", "dtype": "auto", "quantize": "auto", "threads": 1, "max_model_len": 64,
    "memory_gb": 0.01, "page_size": 32, "max_running": 2, "max_step_tokens": 32, "overlap_depth": None,
    "report": lambda stage, seconds: None,
}  # fmt: skip


def test_weights_that_do_not_fit_the_device_are_refused_before_they_are_loaded() -> None:
    """Red when a model that is too large ends in the device's own error, minutes later."""
    step = compile_graph(define_dummy("dummy:qwen3-14b"))
    target = reference_target(activation=torch.bfloat16, device=torch.device("cpu"), page_size=32)
    with pytest.raises(ConfigError, match=r"dummy:qwen3-14b need 29\.5 GB on the device, 24\.0 GB are free"):
        expect_room(step, target, Path("dummy:qwen3-14b"), free_bytes=24 * 10**9)
    expect_room(step, target, Path("dummy:qwen3-14b"), free_bytes=30 * 10**9)


def test_8_bit_weights_are_counted_as_such() -> None:
    """Red when a model that fits once it is quantized is refused: 13.2 G of 14.8 G numbers take a byte."""
    step = compile_graph(define_dummy("dummy:qwen3-14b"), (*PASSES, quantize_fp8))
    target = reference_target(activation=torch.bfloat16, device=torch.device("cpu"), page_size=32)
    with pytest.raises(ConfigError, match=r"need 16\.3 GB on the device"):
        expect_room(step, target, Path("dummy:qwen3-14b"), free_bytes=10**9)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"dtype": "float16"}, "dtype"), ({"quantize": "fp8"}, "quantize"), ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype")],
)
def test_what_only_a_gpu_serves_is_refused_on_a_cpu(options: dict[str, str], field: str) -> None:
    """Red when an option is quietly ignored, or fails deep inside with another error."""
    with pytest.raises(ConfigError, match="served on a GPU only; choose") as error:
        build_worker(device="cpu", **{**OPTIONS, **options})
    assert error.value.field == field


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error() -> None:
    """Red when a machine without a GPU cannot serve by default, or `--device cuda` quietly runs on the CPU."""
    built = build_worker(device="auto", **OPTIONS)
    assert isinstance(built.worker, Worker)
    assert built.overlap_depth == 0
    built.worker.close()
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        build_worker(device="cuda", **OPTIONS)
