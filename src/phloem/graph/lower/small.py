"""The second graph of a model on a device: what steps of few rows run.

Such a step is bound by its launches and by the bytes of its weights, and there fused ops (graph/ops/fused.py) win; over
more rows, where products are bound by arithmetic or take the time of their weights anyway, libraries do.
"""

from __future__ import annotations

from math import prod

from torch import fx

from phloem.graph.compile import mark
from phloem.graph.ir import Pass, Stage, StepGraph, calls, spec_of
from phloem.graph.ops.contract import static
from phloem.graph.ops.model import linear
from phloem.graph.passes.fuse_linear_add import fuse_linear_add
from phloem.graph.passes.fuse_norm_linear import fuse_norm_linear
from phloem.graph.passes.fuse_rope_attention import fuse_rope_attention
from phloem.kernels.triton.attention_shape import AttentionShape

PASSES: tuple[Pass, ...] = (fuse_linear_add, fuse_norm_linear, fuse_rope_attention)
MAX_ROWS, LIGHT_MAX_ROWS = 1, 4
LIGHT_LAYER = 1 << 25  # numbers; a layer of Qwen3-0.6B has 16 million, one of Qwen3-14B 330 million


def max_rows(step: StepGraph) -> int:
    """Rows up to which the fused ops are faster, by `python -m bench.gpu_rows layer` on those two models: each further
    pair of rows reads the weights again, which pays only where weights are light against launches."""
    weights = [node.args[1] for node in calls(step.graph, linear) if not node.args[3]]
    shapes = [spec_of(weight).shape for weight in weights if isinstance(weight, fx.Node)]
    numbers = sum(prod(static("weight", dim) for dim in shape) for shape in shapes)
    return LIGHT_MAX_ROWS if numbers <= LIGHT_LAYER * len(step.layers) else MAX_ROWS


def is_small(shape: AttentionShape, *, max_rows: int) -> bool:
    """Whether a step runs the fused graph: few rows, one query each, no prefix that is read once for all."""
    return shape.max_query_len == 1 and shape.num_rows <= max_rows and not shape.num_shared and not shape.deterministic


def fuse(step: StepGraph) -> StepGraph:
    """The lowered graph after the fusing passes, each verified."""
    stage = Stage("lowered", step.graph, step.recipes)
    stages = [stage]
    for rewrite in PASSES:
        stage = mark(rewrite(stage), step.layers)
        stages.append(stage)
    return StepGraph(stage.graph, stage.recipes, step.layers, tuple(stages))
