"""rms_norm, linear [, silu_mul] -> norm_linear or norm_gated_linear: what is normalized never leaves the program."""

from __future__ import annotations

from torch import fx

from phloem.graph.ir import Stage, calls, copy_graph, is_call, spec_of
from phloem.graph.ops.fused import norm_gated_linear, norm_linear
from phloem.graph.ops.lowered import silu_mul
from phloem.graph.ops.model import linear, rms_norm


def fuse_norm_linear(stage: Stage) -> Stage:
    """Every linear of a norm of the residual stream that nobody else reads; with its silu_mul, where that reads it.

    A linear that gives float32 (logits) stays: its weights are so many that a launch before it does not count.
    """
    graph = copy_graph(stage.graph)
    for norm in calls(graph, rms_norm):
        users = list(norm.users)
        x, *rest = norm.args
        is_stream = isinstance(x, fx.Node) and spec_of(x).dtype == "float32"
        if is_stream and len(users) == 1 and is_call(users[0], linear) and not users[0].args[3]:
            _fuse(graph, users[0], (x, *rest))
    graph.eliminate_dead_code()
    return Stage("fuse_norm_linear", graph, stage.recipes)


def _fuse(graph: fx.Graph, product: fx.Node, normed: tuple[fx.node.Argument, ...]) -> None:
    _, weight_NK, bias_N, _ = product.args
    readers = list(product.users)
    if bias_N is None and len(readers) == 1 and is_call(readers[0], silu_mul):
        old, op, arguments = readers[0], norm_gated_linear, (*normed, weight_NK)
    else:
        old, op, arguments = product, norm_linear, (*normed, weight_NK, bias_N)
    with graph.inserting_before(old):
        fused = graph.create_node("call_function", op, arguments, name=op.name)
    fused.meta["spec"] = spec_of(old)
    old.replace_all_uses_with(fused)
