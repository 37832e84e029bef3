"""linear, then add_rms_norm -> linear_add, then rms_norm: the product adds itself to the residual stream."""

from __future__ import annotations

from torch import fx

from phloem.graph.ir import Stage, calls, copy_graph, is_call
from phloem.graph.ops.fused import linear_add
from phloem.graph.ops.lowered import add_rms_norm
from phloem.graph.ops.model import linear, rms_norm


def fuse_linear_add(stage: Stage) -> Stage:
    """Every add_rms_norm of a linear that nobody else reads becomes an rms_norm of that linear's linear_add."""
    graph = copy_graph(stage.graph)
    for node in calls(graph, add_rms_norm):
        x, residual, *norm = node.args
        if isinstance(x, fx.Node) and is_call(x, linear) and len(x.users) == 1 and not x.args[3]:
            _fuse(graph, node, x, residual, norm)
    graph.eliminate_dead_code()
    return Stage("fuse_linear_add", graph, stage.recipes)


def _fuse(
    graph: fx.Graph, node: fx.Node, product: fx.Node, residual: fx.node.Argument, norm: list[fx.node.Argument]
) -> None:
    with graph.inserting_before(node):
        total = graph.create_node("call_function", linear_add, (*product.args[:3], residual), name="linear_add")
        normed = graph.create_node("call_function", rms_norm, (total, *norm), name="rms_norm")
    normed.meta["spec"], total.meta["spec"] = node.meta["spec"]
    for part in list(node.users):  # operator.getitem of 0 or 1
        part.replace_all_uses_with(normed if part.args[1] == 0 else total)
        graph.erase_node(part)
    graph.erase_node(node)
