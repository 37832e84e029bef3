"""Pipeline parallelism: one stage's layers, and the residual stream that crosses its borders.

    stage 0            embed, layers 0 .. a - 1 ------------ send(x, residual)
    stage 1            receive -> layers a .. b - 1 --------- send
    the last           receive -> layers, norm, LM head ----- logits

It runs last: a border lies before the norm that joins what a layer added (x) to the stream (residual), so two values
cross it. `costs` are those of the layers, and of the LM head as one more: stages are cut where the largest is least.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from phloem.core.errors import ConfigError
from phloem.graph.ir import GraphError, Stage, cache_name, calls, copy_graph, is_call, spec_of
from phloem.graph.ops.collective import receive, send
from phloem.graph.ops.lowered import add_rms_norm, rope_kv_write
from phloem.parallel.mesh import Part


def split_stages(stage: Stage, layers: range, part: Part) -> Stage:
    """The stage of a lowered graph that holds `layers`. The caches of other stages' layers are no inputs of it."""
    graph = copy_graph(stage.graph)
    borders = [_border(node) for node in calls(graph, rope_kv_write)]
    old_caches = [cache_name(layer) for layer in layers]  # a stage counts its own from 0
    end = borders[layers.stop] if not part.is_last else None
    if end is not None:
        _cut_after(graph, end, part.axis)
    if not part.is_first:
        _cut_before(graph, borders[layers.start], part.axis)
    graph.eliminate_dead_code()
    for node in reversed(list(graph.nodes)):
        if node.op in ("placeholder", "get_attr") and not node.users:
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op == "placeholder" and str(node.target) in old_caches:
            node.target = cache_name(old_caches.index(str(node.target)))
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    return Stage("split_stages", graph, {name: recipe for name, recipe in stage.recipes.items() if name in read})


def balance(costs: Sequence[float], num_stages: int) -> tuple[range, ...]:
    """Which layers each stage takes; the last of `costs` is the LM head's, which the last stage has besides.

    The largest stage is as small as it can be (dynamic programming over all borders). ConfigError if one were empty.
    """
    num_layers = len(costs) - 1
    if num_stages > num_layers:
        raise ConfigError(f"--pp {num_stages} is more than the model's {num_layers} layers", field="pp")
    prefix = [0.0]
    for cost in costs[:-1]:
        prefix.append(prefix[-1] + cost)
    # best[s][i]: the largest stage when layers i .. end are divided among s stages, and where the first of them ends
    best: list[dict[int, tuple[float, int]]] = [{}, {}]
    for start in range(num_layers):
        best[1][start] = (prefix[num_layers] - prefix[start] + costs[-1], num_layers)
    for stages in range(2, num_stages + 1):
        best.append({})
        for start in range(num_layers - stages + 1):
            best[stages][start] = min(
                (max(prefix[stop] - prefix[start], best[stages - 1][stop][0]), stop)
                for stop in range(start + 1, num_layers - stages + 2)
            )
    ranges, start = [], 0
    for stages in range(num_stages, 0, -1):
        stop = best[stages][start][1]
        ranges.append(range(start, stop))
        start = stop
    return tuple(ranges)


def _border(write: fx.Node) -> fx.Node:
    """The add_rms_norm (in the first layer: rms_norm) that the layer of this node begins with."""
    projection = write.args[0]
    assert isinstance(projection, fx.Node)
    normed = projection.args[0]
    assert isinstance(normed, fx.Node)
    source = normed.args[0]
    return source if is_call(normed, operator.getitem) and isinstance(source, fx.Node) else normed


def _operands(border: fx.Node) -> tuple[fx.Node, fx.Node]:
    if not is_call(border, add_rms_norm):
        raise GraphError(f"split_stages: node {border.name} does not join a layer to the residual stream")
    x, residual = border.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(residual, fx.Node)
    return x, residual


def _cut_after(graph: fx.Graph, border: fx.Node, axis: str) -> None:
    """End before `border`: what it would read goes to the next stage."""
    x, residual = _operands(border)
    (output,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        sent = graph.create_node("call_function", send, (x, residual, axis), name="send")
    output.args = (sent,)


def _cut_before(graph: fx.Graph, border: fx.Node, axis: str) -> None:
    """Begin with `border`: what it reads comes from the stage before."""
    x, _ = _operands(border)
    (token_ids,) = (node for node in graph.nodes if node.op == "placeholder" and node.target == "token_ids")
    with graph.inserting_before(border):
        width = spec_of(x).shape[1]
        received = graph.create_node("call_function", receive, (token_ids, width, axis), name="receive")
        parts = [graph.call_function(operator.getitem, (received, index)) for index in (0, 1)]
    border.args = (*parts, *border.args[2:])
