"""The second graph of a model on a device: what steps of a row or two run.

Such a step is bound by its launches and by the bytes of its weights, and there fused ops (graph/ops/fused.py) win; over
more rows, where products are bound by arithmetic or take the time of their weights anyway, libraries do.
"""

from __future__ import annotations

from phloem.graph.compile import mark
from phloem.graph.ir import Pass, Stage, StepGraph
from phloem.graph.passes.fuse_linear_add import fuse_linear_add
from phloem.graph.passes.fuse_norm_linear import fuse_norm_linear
from phloem.graph.passes.fuse_rope_attention import fuse_rope_attention
from phloem.kernels.triton.attention_shape import AttentionShape

PASSES: tuple[Pass, ...] = (fuse_linear_add, fuse_norm_linear, fuse_rope_attention)
MAX_ROWS = 2
"""Rows up to which the fused ops are faster: see `python -m bench.gpu_rows`."""


def is_small(shape: AttentionShape) -> bool:
    """Whether a step runs the fused graph: few rows, one query each, no prefix that is read once for all."""
    return shape.max_query_len == 1 and shape.num_rows <= MAX_ROWS and not shape.num_shared and not shape.deterministic


def fuse(step: StepGraph) -> StepGraph:
    """The lowered graph after the fusing passes, each verified."""
    stage = Stage("lowered", step.graph, step.recipes)
    stages = [stage]
    for rewrite in PASSES:
        stage = mark(rewrite(stage), step.layers)
        stages.append(stage)
    return StepGraph(stage.graph, stage.recipes, step.layers, tuple(stages))
