"""swiglu over the two halves of one projection -> silu_mul."""

from __future__ import annotations

from torch import fx

from phloem.graph.ir import Stage, calls, copy_graph, is_call, spec_of
from phloem.graph.ops.lowered import silu_mul
from phloem.graph.ops.model import columns, swiglu


def fuse_activation(stage: Stage) -> Stage:
    """Every swiglu whose gate and up are the first and second half of one value becomes silu_mul of that value."""
    graph = copy_graph(stage.graph)
    for node in calls(graph, swiglu):
        gate, up = node.args
        if not (is_call(gate, columns) and is_call(up, columns)):
            continue
        assert isinstance(gate, fx.Node)
        assert isinstance(up, fx.Node)
        gate_up, width = gate.args[0], spec_of(node).shape[1]
        if (gate.args[1:], up.args) != ((0, width), (gate_up, width, 2 * int(width))):
            continue
        with graph.inserting_before(node):
            fused = graph.create_node("call_function", silu_mul, (gate_up,), name="silu_mul")
        fused.meta["spec"] = spec_of(node)
        node.replace_all_uses_with(fused)
    graph.eliminate_dead_code()
    return Stage("fuse_activation", graph, stage.recipes)
