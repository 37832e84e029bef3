"""shard and split_stages: the parts of a model, run together, compute what the whole one does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from phloem.core.errors import ConfigError
from phloem.core.plan import RowStart, StepPlan
from phloem.core.request import SamplingParams
from phloem.graph.capture.inputs import StepDims, StepInputs, StepLimits
from phloem.graph.compile import compile_graph
from phloem.graph.ir import StepGraph
from phloem.graph.lower.cpu import ReferenceTarget
from phloem.graph.passes.split_stages import balance
from phloem.graph.weights import sources
from phloem.models.catalog import define_dummy
from phloem.parallel.mesh import Mesh, Place
from phloem.runtime.exec.inputs import fill_inputs
from phloem.runtime.exec.rows import RowStore

PAGE, TOKENS = 8, 40
MODELS = ("llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny", "mixtral-tiny", "qwen3moe-tiny")
MESHES = (Mesh(tensor=2), Mesh(tensor=4), Mesh(pipe=2), Mesh(pipe=2, tensor=2))


class Meeting:
    """The collectives of ranks that are threads of one process: the same calls in the same order, or a time-out."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._values: dict[Any, Any] = {}
        self._barriers = {i: threading.Barrier(mesh.tensor, timeout=20) for i in range(mesh.pipe)}
        self._sent = {rank: threading.Event() for rank in range(mesh.size)}

    def _exchange(self, place: Place, value: torch.Tensor) -> list[torch.Tensor]:
        barrier = self._barriers[place.pipe.index]
        self._values[place.rank] = value.clone()
        barrier.wait()
        values = [self._values[rank] for rank in place.neighbours("tensor")]
        barrier.wait()
        return values

    def bound(self, place: Place) -> dict[str, Callable[..., Any]]:
        def all_reduce(x: torch.Tensor, axis: str) -> torch.Tensor:
            return torch.stack(self._exchange(place, x)).sum(0)

        def all_gather(x: torch.Tensor, axis: str, widths: tuple[int, ...]) -> torch.Tensor:
            parts = self._exchange(place, x)
            assert tuple(part.shape[1] for part in parts) == widths
            return torch.cat(parts, dim=1)

        def send(x: torch.Tensor, residual: torch.Tensor, axis: str) -> torch.Tensor:
            self._values["sent", place.rank + self.mesh.tensor] = (x.clone(), residual.clone())
            self._sent[place.rank + self.mesh.tensor].set()
            return residual

        def receive(token_ids: torch.Tensor, width: int, axis: str) -> tuple[torch.Tensor, torch.Tensor]:
            assert self._sent[place.rank].wait(20)
            x, residual = self._values["sent", place.rank]
            assert x.shape == (len(token_ids), width)
            return x, residual

        return {"all_reduce": all_reduce, "all_gather": all_gather, "send": send, "receive": receive}


def logits_of(model: str, step: StepGraph, collectives: dict[str, Callable[..., Any]]) -> torch.Tensor:
    """The last token's logits of one prompt, as one rank computes them."""
    definition = define_dummy(f"dummy:{model}")
    target = ReferenceTarget(activation=torch.float32, page_size=PAGE, reason="test")
    caches = [torch.zeros(8, 2 * PAGE * layer.num_kv_heads * layer.head_dim) for layer in step.layers]
    inputs = StepInputs(StepLimits(64, 2, 8))
    program = target.load(step, definition.checkpoint, collectives)(caches=caches, inputs=inputs)
    rows = RowStore(max_rows=2, max_model_len=64, page_size=PAGE, vocab_size=320, end_token_ids=())
    prompt = tuple(int(i) for i in np.random.default_rng(3).integers(0, 320, TOKENS))
    start = RowStart(0, 0, prompt, TOKENS, 0, (0, 1, 2, 3, 4, 5), SamplingParams(temperature=0), 1)
    plan = StepPlan(step=0, starts=(start,), rows=(0,), num_tokens=(TOKENS,), logits=(1,))
    rows.apply(plan)
    dims: StepDims = fill_inputs(plan=plan, rows=rows, inputs=inputs)
    return program.run(dims).clone()


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: f"pp{mesh.pipe}-tp{mesh.tensor}")
@pytest.mark.parametrize("model", MODELS)
def test_the_parts_compute_the_whole(model: str, mesh: Mesh) -> None:
    """Red if a weight is cut along the wrong dim or range, a collective is missing, a bias is added twice, a head loses
    its KV head, or a layer is in two stages or none. Four ranks over two KV heads replicate them."""
    definition = define_dummy(f"dummy:{model}")
    whole = logits_of(model, compile_graph(definition), {})
    steps = [compile_graph(definition, place=mesh.place(rank)) for rank in range(mesh.size)]  # tracing takes no threads
    meeting = Meeting(mesh)
    found: dict[int, torch.Tensor] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = logits_of(model, steps[rank], meeting.bound(mesh.place(rank)))
        except BaseException as error:
            errors.append(error)
            raise

    ranks = [threading.Thread(target=partial(run, rank)) for rank in range(mesh.size)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert not errors
    for rank in range(mesh.size - mesh.tensor, mesh.size):  # the last stage makes logits, all of its ranks the same
        assert torch.equal(found[rank], found[mesh.size - 1])
        torch.testing.assert_close(found[rank], whole, rtol=0, atol=1e-4)


def test_a_rank_reads_only_its_part() -> None:
    """Red if a rank's recipes stand for more than its share of the weights that are cut."""
    definition = define_dummy("dummy:smollm2-135m")
    numbers = [
        sum(
            int(np.prod(recipe.shape))
            for recipe in compile_graph(definition, place=Mesh(tensor=3).place(rank)).recipes.values()
        )
        for rank in range(3)
    ]
    whole = sum(int(np.prod(recipe.shape)) for recipe in compile_graph(definition).recipes.values())
    assert max(numbers) < 0.34 * whole
    stage = compile_graph(definition, place=Mesh(pipe=2).place(1))
    names = {source.name for recipe in stage.recipes.values() for source in sources(recipe)}
    assert not any(name.startswith("model.layers.0.") for name in names)


def test_stages_are_balanced_by_cost() -> None:
    """Red if the LM head is not counted, or a border is not the best one."""
    assert balance([1.0] * 8 + [0.0], 2) == (range(4), range(4, 8))
    assert balance([1.0] * 8 + [4.0], 2) == (range(6), range(6, 8))
    assert balance([5.0, 1.0, 1.0, 1.0, 1.0], 2) == (range(1), range(1, 4))
    with pytest.raises(ConfigError, match="--pp 5 is more than the model's 4 layers"):
        balance([1.0] * 5, 5)
