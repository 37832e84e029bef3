"""From a model to what a step computes: trace, then the passes, each verified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from phloem.graph.ir import Pass, Stage, StepGraph
from phloem.graph.passes.fuse_activation import fuse_activation
from phloem.graph.passes.fuse_residual_norm import fuse_residual_norm
from phloem.graph.passes.fuse_rope_kv_write import fuse_rope_kv_write
from phloem.graph.passes.merge_linears import merge_linears
from phloem.graph.passes.select_last_rows import select_last_rows
from phloem.graph.trace import trace
from phloem.graph.verify import verify
from phloem.graph.weights import WeightRecipe
from phloem.memory.spec import FullAttention

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

    def build(self) -> nn.Module:
        """The module on the meta device; forward(token_ids, positions) -> logits."""
        ...


def compile_graph(definition: Traceable, passes: tuple[Pass, ...] = PASSES) -> StepGraph:
    """Trace the model and apply `passes`, verifying after each; GraphError names the pass and the node at fault."""
    layers = definition.layers
    stage = mark(trace(definition.build(), definition.recipes), layers)
    stages = [stage]
    for rewrite in passes:
        stage = mark(rewrite(stage), layers)
        stages.append(stage)
    verify(stage, layers, lowered=passes[: len(PASSES)] == PASSES)
    return StepGraph(stage.graph, stage.recipes, layers, tuple(stages))


def mark(stage: Stage, layers: tuple[FullAttention, ...]) -> Stage:
    """Verify a new stage and write the spec of every node on it, for the next pass to read."""
    for node, spec in verify(stage, layers).items():
        node.meta["spec"] = spec
    return stage
