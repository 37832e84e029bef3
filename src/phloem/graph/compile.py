"""From a model to what a step computes: trace, then the passes, each verified."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Protocol

import msgspec
from torch import nn

from phloem.graph.ir import Pass, Stage, StepGraph, calls
from phloem.graph.ops.model import linear
from phloem.graph.passes.fuse_activation import fuse_activation
from phloem.graph.passes.fuse_residual_norm import fuse_residual_norm
from phloem.graph.passes.fuse_rope_kv_write import fuse_rope_kv_write
from phloem.graph.passes.merge_linears import merge_linears
from phloem.graph.passes.select_last_rows import select_last_rows
from phloem.graph.passes.shard import shard
from phloem.graph.passes.split_stages import balance, split_stages
from phloem.graph.trace import trace
from phloem.graph.verify import verify
from phloem.graph.weights import WeightRecipe
from phloem.memory.spec import FullAttention
from phloem.parallel.layout import Layout, Sizes, resolve_shard
from phloem.parallel.mesh import ALONE, Part, Place

PASSES: tuple[Pass, ...] = (
    merge_linears,
    fuse_residual_norm,
    fuse_activation,
    fuse_rope_kv_write,
    select_last_rows,
)


class Traceable(Protocol):
    """What compiling needs to know of a model."""

    @property
    def layers(self) -> tuple[FullAttention, ...]:
        """What each layer keeps between steps."""
        ...

    @property
    def recipes(self) -> Mapping[str, WeightRecipe]:
        """How each parameter and buffer of the module is made."""
        ...

    @property
    def layout(self) -> Layout:
        """How parameters are cut along the tensor axis."""
        ...

    @property
    def sizes(self) -> Sizes:
        """The numbers that cuts go by."""
        ...

    def build(self) -> nn.Module:
        """The module on the meta device; forward(token_ids, positions) -> logits."""
        ...


def compile_graph(definition: Traceable, passes: tuple[Pass, ...] = PASSES, *, place: Place = ALONE) -> StepGraph:
    """Trace the model and apply `passes`, verifying after each; GraphError names the pass and the node at fault.

    At a `place` of a larger mesh the graph is that rank's part; ConfigError where the model cannot be cut so.
    """
    layers = definition.layers
    stage = mark(trace(definition.build(), definition.recipes), layers)
    stages = [stage]
    rewrites = passes
    if place.tensor.size > 1:
        mine = resolve_shard(definition.sizes, place.tensor, whole_experts=place.mesh.whole_experts)
        layers = tuple(msgspec.structs.replace(layer, num_kv_heads=mine.num_kv_heads) for layer in layers)
        rewrites = (partial(shard, layout=definition.layout, mine=mine), *passes)
    for rewrite in rewrites:
        stage = mark(rewrite(stage), layers)
        stages.append(stage)
    if place.pipe.size > 1:
        mine_of_all = _stage_layers(stage, layers, place.pipe)
        layers = layers[mine_of_all.start : mine_of_all.stop]
        stage = split_stages(stage, mine_of_all, place.pipe)
        mark(stage, layers)
        stages.append(stage)
    verify(stage, layers, lowered=passes[: len(PASSES)] == PASSES, whole=place.pipe.size == 1)
    return StepGraph(stage.graph, stage.recipes, layers, tuple(stages))


def _stage_layers(stage: Stage, layers: tuple[FullAttention, ...], part: Part) -> range:
    """The layers of one stage of a pipeline, balanced by the bytes a decode step reads: weights, LM head included."""
    costs = [0.0] * (len(layers) + 1)
    for node in calls(stage.graph, linear):
        weight = str(node.all_input_nodes[1].target)
        found = re.match(r"layers\.(\d+)\.", weight)
        costs[int(found.group(1)) if found else -1] += prod(stage.recipes[weight].shape)
    return balance(costs, part.size)[part.index]


def mark(stage: Stage, layers: tuple[FullAttention, ...]) -> Stage:
    """Verify a new stage and write the spec of every node on it, for the next pass to read."""
    for node, spec in verify(stage, layers).items():
        node.meta["spec"] = spec
    return stage
