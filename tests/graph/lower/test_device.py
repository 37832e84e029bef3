"""Weights by recipe on a device, the program that runs a graph there, and which kernels are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from phloem.core.errors import ConfigError
from phloem.graph.checkpoint.checkpoint import Checkpoint, Entry, LazyTensors
from phloem.graph.compile import compile_graph
from phloem.graph.lower import cuda
from phloem.graph.lower.device_weights import load_parameters
from phloem.graph.weights import Concat, Constant, Rows, Stored, load_raw, to_torch
from phloem.kernels.spec import Machine, RawWeight
from phloem.kernels.vendor import implementations as vendor
from phloem.models.catalog import define_dummy

HOST = torch.device("cpu")


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


def test_without_a_gpu_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    step = compile_graph(define_dummy("dummy:qwen3-tiny"))
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        cuda.pick_target(step, dtype="auto", quantize="auto", page_size=32)
    assert not cuda.serves(dtype="auto", quantize="auto")


def test_refusals_are_the_registrys() -> None:
    """Red when a graph with an op that no kernel takes is accepted, or refused without the reason."""
    step = compile_graph(define_dummy("dummy:qwen3-tiny"))
    machine = Machine(frozenset({"cuda"}))
    chosen = cuda.choose(step, machine=machine, activation=torch.bfloat16, page_size=32)
    assert chosen["paged_attention"] == chosen["linear"] == "triton"
    with_library = Machine(frozenset({"cuda", vendor.FLASH_ATTENTION3}))
    chosen = cuda.choose(step, machine=with_library, activation=torch.bfloat16, page_size=32)
    assert (chosen["paged_attention"], chosen["linear"]) == ("flash_attention3", "triton")
    with pytest.raises(ConfigError, match="takes activations in bfloat16 or float16"):
        cuda.choose(step, machine=machine, activation=torch.float32, page_size=32)
