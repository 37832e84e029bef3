"""residual + x, then rms_norm -> add_rms_norm: the residual stream crosses memory once instead of three times."""

from __future__ import annotations

import operator

from torch import fx

from phloem.graph.ir import Stage, calls, copy_graph, is_call, spec_of
from phloem.graph.ops.lowered import add_rms_norm
from phloem.graph.ops.model import rms_norm


def fuse_residual_norm(stage: Stage) -> Stage:
    """Every norm of a sum becomes add_rms_norm, whose second result is the sum."""
    graph = copy_graph(stage.graph)
    for norm in calls(graph, rms_norm):
        total, weight_D, eps = norm.args
        if isinstance(total, fx.Node) and is_call(total, operator.add):
            _fuse(graph, norm, total, weight_D, eps)
    graph.eliminate_dead_code()
    return Stage("fuse_residual_norm", graph, stage.recipes)


def _fuse(graph: fx.Graph, norm: fx.Node, total: fx.Node, weight_D: fx.node.Argument, eps: fx.node.Argument) -> None:
    terms = [term for term in total.args if isinstance(term, fx.Node)]
    x, residual = sorted(terms, key=lambda term: spec_of(term).dtype == "float32")
    with graph.inserting_before(norm):
        fused = graph.create_node("call_function", add_rms_norm, (x, residual, weight_D, eps), name="add_rms_norm")
        normed, residual = (graph.call_function(operator.getitem, (fused, i)) for i in (0, 1))
    normed.meta["spec"], residual.meta["spec"] = spec_of(norm), spec_of(total)
    norm.replace_all_uses_with(normed)
    graph.erase_node(norm)
    total.replace_all_uses_with(residual)
