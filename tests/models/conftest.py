"""A driver that runs graphs with the reference ops, and tiny random models saved by transformers to compare with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from phloem.graph.checkpoint.open import open_checkpoint
from phloem.graph.compile import compile_graph
from phloem.graph.ir import StepGraph, placeholders, spec_of
from phloem.graph.ops.contract import Op
from phloem.graph.weights import load_raw, to_torch
from phloem.models.catalog import define_model
from phloem.models.definition import ModelDefinition

PAGE_SIZE = 8


@dataclass(frozen=True)
class Chunk:
    """A row of a step: the tokens start..stop of prompt number `sequence`."""

    sequence: int
    start: int
    stop: int


def run_graph(graph: fx.Graph, parameters: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Node by node on the references."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        args = [values[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]
        if node.op == "placeholder":
            values[node] = inputs[node.target]
        elif node.op == "get_attr":
            values[node] = parameters[node.target]
        elif node.op == "output":
            return args[0]
        else:
            assert isinstance(node.target, Op) or node.target in (operator.getitem, operator.add)
            values[node] = node.target(*args)
    raise AssertionError("no output")


@dataclass
class Driver:
    """Runs prompts through the lowered graph, in steps of chunks over a paged cache, or through the traced graph."""

    definition: ModelDefinition
    step: StepGraph
    dtype: torch.dtype = torch.float32
    _parameters: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def parameters(self, stage: int) -> dict[str, torch.Tensor]:
        chosen = self.step.stages[stage]
        if chosen.name not in self._parameters:
            self._parameters[chosen.name] = {
                name: to_torch(load_raw(recipe, self.definition.checkpoint), self.dtype)
                for name, recipe in chosen.recipes.items()
            }
        return self._parameters[chosen.name]

    def traced(self, prompt: list[int]) -> torch.Tensor:
        """Logits of every token by the model-level graph."""
        inputs = {"token_ids": torch.tensor(prompt), "positions": torch.arange(len(prompt))}
        return run_graph(self.step.stages[0].graph, self.parameters(0), inputs)

    def lowered(self, prompts: list[list[int]], steps: list[list[Chunk]]) -> list[torch.Tensor]:
        """Logits of every token of every prompt, computed in the given steps."""
        pages_each = -(-max(map(len, prompts)) // PAGE_SIZE)
        # pages of one prompt are neither adjacent nor in order, so that a wrong table shows
        table = torch.randperm(len(prompts) * pages_each, generator=torch.Generator().manual_seed(1)).reshape(
            len(prompts), pages_each
        )
        caches = {}
        for node in placeholders(self.step.graph):
            if node.target.startswith("kv_cache_"):
                heads, dim = spec_of(node).shape[3:]
                caches[node.target] = torch.full(
                    (table.numel(), 2, PAGE_SIZE, heads, dim), float("nan"), dtype=self.dtype
                )
        pieces: list[list[torch.Tensor]] = [[] for _ in prompts]
        for chunks in steps:
            logits = run_graph(self.step.graph, self.parameters(-1), caches | self._inputs(prompts, chunks, table))
            for chunk, part in zip(chunks, logits.split([c.stop - c.start for c in chunks]), strict=True):
                pieces[chunk.sequence].append(part)
        return [torch.cat(parts) for parts in pieces]

    def _inputs(self, prompts: list[list[int]], chunks: list[Chunk], table: torch.Tensor) -> dict[str, torch.Tensor]:
        positions = torch.cat([torch.arange(c.start, c.stop) for c in chunks])
        pages = torch.cat([table[c.sequence, torch.arange(c.start, c.stop) // PAGE_SIZE] for c in chunks])
        lengths = torch.tensor([0, *(c.stop - c.start for c in chunks)])
        nothing = torch.zeros(0)
        inputs = {
            "token_ids": torch.tensor([token for c in chunks for token in prompts[c.sequence][c.start : c.stop]]),
            "positions": positions,
            "slots": pages * PAGE_SIZE + positions % PAGE_SIZE,
            "logit_rows": torch.arange(len(positions)),
            "query_start": lengths.cumsum(0),
            "context_len": torch.tensor([c.stop for c in chunks]),
            "block_table": table[[c.sequence for c in chunks]],
            "shared_start": torch.zeros(1),
            "shared_rows": nothing,
            "shared_pages": nothing,
        }
        return {name: value.int() for name, value in inputs.items()}


def open_driver(path: Path, dtype: torch.dtype = torch.float32) -> Driver:
    definition = define_model(open_checkpoint(path))
    return Driver(definition, compile_graph(definition), dtype)


def whole(prompts: list[list[int]]) -> list[list[Chunk]]:
    """One prompt a step."""
    return [[Chunk(i, 0, len(prompt))] for i, prompt in enumerate(prompts)]


def batched(prompts: list[list[int]]) -> list[list[Chunk]]:
    """All prompts in one step."""
    return [[Chunk(i, 0, len(prompt)) for i, prompt in enumerate(prompts)]]


def chunked(prompts: list[list[int]], size: int = 5) -> list[list[Chunk]]:
    """Every prompt in chunks of `size` tokens, mixed in each step; the last tokens one by one, as decoding does."""

    def cuts(length: int) -> Iterator[tuple[int, int]]:
        body = max(0, length - 3)
        for start in range(0, body, size):
            yield start, min(start + size, body)
        for start in range(body, length):
            yield start, start + 1

    columns = [list(cuts(len(prompt))) for prompt in prompts]
    depth = max(map(len, columns))
    return [[Chunk(i, *column[n]) for i, column in enumerate(columns) if n < len(column)] for n in range(depth)]


SCHEDULES: dict[str, Callable[[list[list[int]]], list[list[Chunk]]]] = {
    "whole": whole,
    "batched": batched,
    "chunked": chunked,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are not worth a thread pool, least of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def schedules() -> dict[str, Callable[[list[list[int]]], list[list[Chunk]]]]:
    """Ways to cut prompts into steps; all must give the same logits."""
    return SCHEDULES


@pytest.fixture
def driver_for() -> Callable[..., Driver]:
    """Opens, defines and compiles the checkpoint at a path."""
    return open_driver
