"""q, k, v -> one linear; gate, up -> one linear: the same input is read once, and one kernel replaces several."""

from __future__ import annotations

from torch import fx

from phloem.graph.ir import Stage, calls, copy_graph, is_call, spec_of
from phloem.graph.ops.model import columns, linear
from phloem.graph.weights import Concat, WeightRecipe


def merge_linears(stage: Stage) -> Stage:
    """Linears of one input become one linear over concatenated rows, each old result a range of its columns."""
    graph, recipes = copy_graph(stage.graph), dict(stage.recipes)
    inputs = dict.fromkeys(node.args[0] for node in calls(graph, linear))
    for x in inputs:
        assert isinstance(x, fx.Node)
        group = sorted(node for node in x.users if is_call(node, linear))
        if len(group) > 1 and _alike(group):
            _merge(graph, recipes, group)
    graph.eliminate_dead_code()
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    return Stage("merge_linears", graph, {name: recipe for name, recipe in recipes.items() if name in read})


def _alike(group: list[fx.Node]) -> bool:
    """All with a bias or all without, and of one output type."""
    return len({(bias is None, float32_out) for _, _, bias, float32_out in (node.args for node in group)}) == 1


def _merge(graph: fx.Graph, recipes: dict[str, WeightRecipe], group: list[fx.Node]) -> None:
    x, _, bias, float32_out = group[0].args
    with graph.inserting_before(group[0]):
        weight_NK = _merged_parameter(graph, recipes, [node.args[1] for node in group])
        bias_N = None if bias is None else _merged_parameter(graph, recipes, [node.args[2] for node in group])
        merged = graph.create_node("call_function", linear, (x, weight_NK, bias_N, float32_out), name="linear")
    start = 0
    for node in group:
        width = spec_of(node).shape[1]
        assert isinstance(width, int)
        with graph.inserting_before(node):
            part = graph.create_node("call_function", columns, (merged, start, start + width), name="columns")
        part.meta["spec"] = spec_of(node)
        node.replace_all_uses_with(part)
        graph.erase_node(node)
        start += width


def _merged_parameter(graph: fx.Graph, recipes: dict[str, WeightRecipe], nodes: list[object]) -> fx.Node:
    """layers.0.attention.{q,k,v}.weight -> layers.0.attention.q_k_v.weight"""
    names = [str(node.target) for node in nodes if isinstance(node, fx.Node)]
    merged = ".".join(
        "_".join(dict.fromkeys(parts)) for parts in zip(*(name.split(".") for name in names), strict=True)
    )
    recipes[merged] = Concat(tuple(recipes[name] for name in names))
    return graph.get_attr(merged)
