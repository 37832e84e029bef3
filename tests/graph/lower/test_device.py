"""Weights by recipe on a device, the program that runs a graph there, and which kernels are chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phloem.core.errors import ConfigError
from phloem.graph.checkpoint.checkpoint import Checkpoint, Entry, LazyTensors
from phloem.graph.compile import PASSES, compile_graph
from phloem.graph.lower import cuda
from phloem.graph.lower.device_weights import load_parameters, type_of
from phloem.graph.ops.fp8 import FP8, quantize_rows
from phloem.graph.passes.quantize_fp8 import quantize_fp8
from phloem.graph.weights import Concat, Constant, Rows, Stored, load_raw, to_torch
from phloem.kernels.spec import Machine, RawWeight
from phloem.kernels.vendor import implementations as vendor
from phloem.models.catalog import define_dummy

HOST = torch.device("cpu")
CHOICES = cuda.DeviceChoices(dtype="auto", quantize="auto", kv_cache_dtype="auto", deterministic=False, page_size=32)
USUAL = {"activation": torch.bfloat16, "kv_type": torch.bfloat16, "page_size": 32, "deterministic": False}


def checkpoint(**tensors: np.ndarray) -> Checkpoint:
    raws = {name: RawWeight.from_array(values.astype(np.float32)) for name, values in tensors.items()}
    entries = {name: Entry(raw.encoding, raw.num_bytes, lambda raw=raw: raw) for name, raw in raws.items()}
    return Checkpoint(Path("here"), "hf", {}, LazyTensors(entries))


def test_recipes_give_what_the_host_makes_of_them() -> None:
    """Red when a join, a permutation or a constant comes out otherwise than in `load_raw`."""
    numbers = np.random.default_rng(0)
    here = checkpoint(
        a=numbers.standard_normal((6, 8)), b=numbers.standard_normal((4, 8)), v=numbers.standard_normal(8)
    )
    recipes = {
        "joined": Concat((Rows(Stored("a", (6, 8)), np.array([5, 0, 3, 2, 1, 4])), Stored("b", (4, 8)))),
        "vector": Stored("v", (8,)),
        "inv_freq": Constant(np.arange(4, dtype=np.float32)),
    }
    made = load_parameters(recipes, here, dtype=torch.bfloat16, device=HOST)
    for name, recipe in recipes.items():
        dtype = torch.float32 if name == "inv_freq" else torch.bfloat16
        assert torch.equal(made[name], to_torch(load_raw(recipe, here), dtype)), name


def test_a_dummy_is_the_same_model_on_the_device() -> None:
    """Red when the pattern that a device repeats is not the tensor that the host reads."""
    definition = define_dummy("dummy:qwen3-tiny")
    step = compile_graph(definition)
    made = load_parameters(step.recipes, definition.checkpoint, dtype=torch.bfloat16, device=HOST)
    for name, recipe in step.recipes.items():
        raw = load_raw(recipe, definition.checkpoint)
        assert torch.equal(made[name], to_torch(raw, made[name].dtype)), name


def test_8_bit_parameters_are_the_quantized_sources() -> None:
    """Red when numbers and scales come from different matrices, or a parameter's type is not what kernels are told."""
    definition = define_dummy("dummy:qwen3-tiny")
    plain = load_parameters(compile_graph(definition).recipes, definition.checkpoint, dtype=torch.bfloat16, device=HOST)
    step = compile_graph(definition, (*PASSES, quantize_fp8))
    made = load_parameters(step.recipes, definition.checkpoint, dtype=torch.bfloat16, device=HOST)
    assert {name: made[name].dtype for name in made} == {
        name: type_of(name, recipe, torch.bfloat16) for name, recipe in step.recipes.items()
    }
    quantized = [name for name in made if made[name].dtype == FP8]
    assert len(quantized) == 4 * len(step.layers)
    for name in quantized:
        numbers, scale = quantize_rows(plain[name])
        assert torch.equal(made[name].float(), numbers.float()), name
        assert torch.equal(made[name.removesuffix("weight") + "scale"], scale), name


def test_without_a_gpu_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    step = compile_graph(define_dummy("dummy:qwen3-tiny"))
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        cuda.pick_target(step, CHOICES)
    assert not cuda.serves(dtype="auto", quantize="auto")


def test_refusals_are_the_registrys() -> None:
    """Red when a graph with an op that no kernel takes is accepted, or refused without the reason."""
    step = compile_graph(define_dummy("dummy:qwen3-tiny"))
    machine = Machine(frozenset({"cuda"}))
    chosen = cuda.choose(step, machine=machine, **USUAL)
    assert chosen["paged_attention"] == chosen["linear"] == "triton"
    with_library = Machine(frozenset({"cuda", vendor.FLASH_ATTENTION3}))
    chosen = cuda.choose(step, machine=with_library, **USUAL)
    assert (chosen["paged_attention"], chosen["linear"]) == ("flash_attention3", "triton")
    with pytest.raises(ConfigError, match="takes activations in bfloat16 or float16"):
        cuda.choose(step, machine=machine, **{**USUAL, "activation": torch.float32})


def test_a_library_that_varies_is_not_chosen_where_bits_count() -> None:
    """Red when a kernel whose sums depend on the batch is taken in deterministic mode, or one that cannot read 8-bit
    floats is given a cache of them."""
    step = compile_graph(define_dummy("dummy:qwen3-tiny"), (*PASSES, quantize_fp8))
    machine = Machine(frozenset({"cuda", vendor.FLASH_ATTENTION3}))
    chosen = cuda.choose(step, machine=machine, **{**USUAL, "deterministic": True})
    assert {op: chosen[op] for op in ("linear", "linear_fp8", "paged_attention")} == {
        "linear": "invariant",
        "linear_fp8": "invariant",
        "paged_attention": "triton",
    }
    chosen = cuda.choose(step, machine=machine, **{**USUAL, "kv_type": FP8})
    assert chosen["paged_attention"] == chosen["linear_fp8"] == "triton"


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_storage_of_the_cpu_is_refused(quantize: str) -> None:
    with pytest.raises(ConfigError, match="choose auto, none, fp8"):
        _ = replace(CHOICES, quantize=quantize).passes
