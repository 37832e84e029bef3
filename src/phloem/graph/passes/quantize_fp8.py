"""linear -> linear_fp8: weights in 8 bits with a scale for each output channel; activations follow row by row.

The LM head keeps its type: it decides between near-equal logits, and takes 5 % of the bytes of a 14B model.
"""

from __future__ import annotations

from torch import fx

from phloem.graph.ir import Stage, calls, copy_graph, is_call, spec_of
from phloem.graph.ops.fp8 import linear_fp8
from phloem.graph.ops.model import linear
from phloem.graph.weights import Fp8Numbers, Fp8Scales, WeightRecipe

MULTIPLE = 16
"""What both dims of a matrix must be multiples of, for the matrix units to take it."""


def quantize_fp8(stage: Stage) -> Stage:
    """Every linear but the one that makes the logits, where the weight is nobody else's and its dims are whole."""
    graph, recipes = copy_graph(stage.graph), dict(stage.recipes)
    for node in calls(graph, linear):
        x, weight, bias, float32_out = node.args
        assert isinstance(weight, fx.Node)
        if not float32_out and _can_be_fp8(weight):
            with graph.inserting_before(node):
                scale = _quantized(graph, recipes, str(weight.target))
                fused = graph.create_node("call_function", linear_fp8, (x, weight, scale, bias), name="linear_fp8")
            fused.meta["spec"] = spec_of(node)
            node.replace_all_uses_with(fused)
            graph.erase_node(node)
    return Stage("quantize_fp8", graph, recipes)


def _can_be_fp8(weight: fx.Node) -> bool:
    whole = all(isinstance(dim, int) and dim % MULTIPLE == 0 for dim in spec_of(weight).shape)
    readers = [user for node in weight.graph.nodes if node.target == weight.target for user in node.users]
    return whole and all(is_call(user, linear) and len(readers) == 1 for user in readers)


def _quantized(graph: fx.Graph, recipes: dict[str, WeightRecipe], name: str) -> fx.Node:
    """Rewrite the recipe of `name`; the node of its scales, layers.0.mlp.down.weight -> layers.0.mlp.down.scale."""
    scale = name.removesuffix("weight") + "scale"
    source = recipes[name]
    recipes[name], recipes[scale] = Fp8Numbers(source), Fp8Scales(source)
    return graph.get_attr(scale)
