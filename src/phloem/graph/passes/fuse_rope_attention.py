"""rope_kv_write, then paged_attention of what it wrote -> rope_attention: one launch where every row has one query."""

from __future__ import annotations

from torch import fx

from phloem.graph.ir import Stage, calls, copy_graph, is_call, spec_of
from phloem.graph.ops.fused import rope_attention
from phloem.graph.ops.lowered import paged_attention, rope_kv_write


def fuse_rope_attention(stage: Stage) -> Stage:
    """Every attention over the cache that its own queries' write went to."""
    graph = copy_graph(stage.graph)
    for attention in calls(graph, paged_attention):
        q, cache, *rest = attention.args
        if isinstance(q, fx.Node) and is_call(q, rope_kv_write) and q.args[-1] is cache and len(q.users) == 1:
            with graph.inserting_before(attention):
                fused = graph.create_node("call_function", rope_attention, (*q.args, *rest), name="rope_attention")
            fused.meta["spec"] = spec_of(attention)
            attention.replace_all_uses_with(fused)
            graph.erase_node(attention)
            graph.erase_node(q)
    return Stage("fuse_rope_attention", graph, stage.recipes)
