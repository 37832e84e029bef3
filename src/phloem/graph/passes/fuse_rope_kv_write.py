"""Attention meets the paged cache: from here on the graph keeps state between steps.

columns -> heads [-> rms_norm] -> rope -+
columns -> heads [-> rms_norm] -> rope -+-> attention    =>    rope_kv_write -> paged_attention
columns -> heads ----------------------+                       (one kv_cache input a layer)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from phloem.graph.ir import (
    ATTENTION_META,
    STEP_INPUTS,
    GraphError,
    Stage,
    add_placeholder,
    cache_name,
    cache_spec,
    calls,
    copy_graph,
    is_call,
    spec_of,
)
from phloem.graph.ops.lowered import paged_attention, rope_kv_write
from phloem.graph.ops.model import attention, columns, heads, rms_norm, rope


def fuse_rope_kv_write(stage: Stage) -> Stage:
    """Every attention over one sequence becomes a write to, and a read of, its layer's cache. Layers count in order."""
    graph = copy_graph(stage.graph)
    slots, *meta = [add_placeholder(graph, name, STEP_INPUTS[name]) for name in ("slots", *ATTENTION_META)]
    for layer, node in enumerate(calls(graph, attention)):
        q, k, v = (_operand(arg) for arg in node.args[:3])
        if q is None or k is None or v is None or not _fit_together(q, k, v):
            raise GraphError(f"fuse_rope_kv_write: the inputs of node {node.name} are not q, k, v of one merged linear")
        _, num_kv_heads, head_dim = spec_of(k.heads).shape
        cache = add_placeholder(graph, cache_name(layer), cache_spec(int(num_kv_heads), int(head_dim)))
        eps = q.norm[1] if q.norm else 0.0
        norms = [operand.norm[0] if operand.norm else None for operand in (q, k)]
        assert q.rotation is not None
        positions, inv_freq = q.rotation
        with graph.inserting_before(node):
            write = (q.source, *norms, eps, positions, slots, inv_freq, cache)
            rotated = graph.create_node("call_function", rope_kv_write, write, name="rope_kv_write")
            read = (rotated, cache, *meta, *node.args[3:])
            out = graph.create_node("call_function", paged_attention, read, name="paged_attention")
        rotated.meta["spec"], out.meta["spec"] = spec_of(q.heads), spec_of(node)
        node.replace_all_uses_with(out)
    graph.eliminate_dead_code()
    return Stage("fuse_rope_kv_write", graph, stage.recipes)


@dataclass(frozen=True)
class _Operand:
    """Where q, k or v comes from: columns start..stop of `source` as `heads`, maybe normalized, maybe rotated."""

    source: fx.Node
    start: int
    stop: int
    heads: fx.Node
    norm: tuple[fx.Node, float] | None  # weight, eps
    rotation: tuple[fx.Node, fx.Node] | None  # positions, inv_freq


def _operand(node: Any) -> _Operand | None:
    """Follow one input of an attention back to the merged linear; None where it is anything else."""
    norm = rotation = None
    if is_call(node, rope):
        node, *rotation = node.args
    if is_call(node, rms_norm):
        node, *norm = node.args
    if not (is_call(node, heads) and is_call(node.args[0], columns)):
        return None
    source, start, stop = node.args[0].args
    return _Operand(source, start, stop, node, norm and tuple(norm), rotation and tuple(rotation))


def _fit_together(q: _Operand, k: _Operand, v: _Operand) -> bool:
    """The three tile one projection in order; q and k are treated alike and v is left as it is."""
    tiles = (q.start, q.stop, k.stop, v.stop) == (0, k.start, v.start, spec_of(q.source).shape[1])
    one_source = q.source is k.source is v.source
    rotated = q.rotation is not None and q.rotation == k.rotation and v.rotation is None
    eps = [operand.norm and operand.norm[1] for operand in (q, k)]
    return tiles and one_source and rotated and eps[0] == eps[1] and v.norm is None
