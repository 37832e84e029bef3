"""Tensor parallelism: one rank's part of every parameter its layout cuts, and the collectives that make up for it.

    linear cut by rows       fewer outputs: what follows (heads, attention, swiglu) is smaller by itself
    linear cut by columns    a partial sum              -> all_reduce
    experts                  each cut like an MLP       -> all_reduce
                             or whole, by rank          -> moe_exchange (all-to-all)
    embedding                foreign tokens are zero    -> all_reduce
    LM head                  this rank's logits         -> all_gather

It runs first, while parameters have the names that layouts know; every other pass sees an ordinary, smaller model.
A rank reads the rows and columns it needs: cuts become part of the weight recipes.
"""

from __future__ import annotations

import re

import numpy as np
from torch import fx

from phloem.graph.ir import GraphError, Stage, calls, copy_graph
from phloem.graph.ops.collective import all_gather, all_reduce, local_ids, owned_rows
from phloem.graph.ops.experts import moe, moe_exchange
from phloem.graph.ops.model import embed, linear
from phloem.graph.weights import Columns, Concat, Constant, Rows, WeightRecipe
from phloem.parallel.layout import Cut, Layout, Shard


def shard(stage: Stage, layout: Layout, mine: Shard) -> Stage:
    """The stage of one rank. Specs are left for the verifier to derive: almost every width changes."""
    graph = copy_graph(stage.graph)
    recipes = {name: _cut_recipe(recipe, cut_of(name, layout), mine) for name, recipe in stage.recipes.items()}
    for node in calls(graph, embed):
        _cut_embed(graph, node, layout, mine)
    for node in calls(graph, linear):
        _cut_linear(graph, node, recipes, layout, mine)
    for node in calls(graph, moe):
        _cut_moe(graph, node, mine)
    for node in graph.nodes:
        node.meta.pop("spec", None)
    return Stage("shard", graph, recipes)


def cut_of(parameter: str, layout: Layout) -> Cut | None:
    """How the layout cuts a parameter, named in full."""
    return layout.get(re.sub(r"\.\d+\.", ".{}.", parameter, count=1))


def _cut_recipe(recipe: WeightRecipe, cut: Cut | None, mine: Shard) -> WeightRecipe:
    if cut is None:
        return recipe
    if cut.unit == "expert_ffn":
        return _cut_experts(recipe, cut, mine)
    part = mine.ranges[cut.unit]
    if cut.dim == "columns":
        return Columns(recipe, part)
    if isinstance(recipe, Rows) and not isinstance(recipe.index, slice):
        return Rows(recipe.source, recipe.index[part])  # of a permutation, only these rows are read
    return Rows(recipe, part)


def _cut_experts(recipe: WeightRecipe, cut: Cut, mine: Shard) -> WeightRecipe:
    """Of a join of all experts' tensors: those of whole experts, or of every expert its part."""
    if not isinstance(recipe, Concat):
        raise GraphError("shard: the weights of experts are not a join of one tensor each")
    if mine.experts is not None:
        each = len(recipe.parts) // mine.num_experts  # tensors of one expert
        return Concat(recipe.parts[mine.experts.start * each : mine.experts.stop * each])
    part = mine.ranges["expert_ffn"]
    return Concat(tuple(Rows(leaf, part) if cut.dim == "rows" else Columns(leaf, part) for leaf in recipe.parts))


def _cut_moe(graph: fx.Graph, node: fx.Node, mine: Shard) -> None:
    with graph.inserting_after(node):
        if mine.experts is None:
            whole = graph.create_node("call_function", all_reduce, (node, mine.part.axis), name="all_reduce")
            node.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)
        else:
            exchange = graph.create_node("call_function", moe_exchange, (*node.args[:6], mine.part.axis))
            node.replace_all_uses_with(exchange)
            graph.erase_node(node)


def _cut_embed(graph: fx.Graph, node: fx.Node, layout: Layout, mine: Shard) -> None:
    token_ids, weight = node.args
    if _cut(weight, layout) is None:
        return
    part = mine.ranges["vocab"]
    with graph.inserting_before(node):
        node.update_arg(0, graph.create_node("call_function", local_ids, (token_ids, part.start, part.stop)))
    with graph.inserting_after(node):
        owned = graph.create_node("call_function", owned_rows, (node, token_ids, part.start, part.stop))
    with graph.inserting_after(owned):
        whole = graph.create_node("call_function", all_reduce, (owned, mine.part.axis), name="all_reduce")
    node.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not owned)


def _cut_linear(graph: fx.Graph, node: fx.Node, recipes: dict[str, WeightRecipe], layout: Layout, mine: Shard) -> None:
    _, weight, bias, _ = node.args
    cut = _cut(weight, layout)
    if cut is None:
        return
    with graph.inserting_after(node):
        if cut.dim == "columns":
            if isinstance(bias, fx.Node) and not mine.part.is_first:  # one rank adds it to the sum
                recipes[str(bias.target)] = Constant(np.zeros(recipes[str(bias.target)].shape, np.float32))
            whole = graph.create_node("call_function", all_reduce, (node, mine.part.axis), name="all_reduce")
        elif cut.unit == "vocab":
            gathered = (node, mine.part.axis, mine.vocab_widths)
            whole = graph.create_node("call_function", all_gather, gathered, name="all_gather")
        else:
            return
    node.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)


def _cut(weight: fx.node.Argument, layout: Layout) -> Cut | None:
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        raise GraphError("shard: a weight is not a parameter")
    return cut_of(str(weight.target), layout)
