"""Buffers of a lowered graph: values that live together never share one."""

from __future__ import annotations

import operator

import torch

from phloem.graph.compile import compile_graph
from phloem.graph.lower.buffers import place_buffers, resolve
from phloem.graph.ops.contract import Op
from phloem.models.catalog import define_dummy

NAME = "smollm2-135m"


def test_no_value_is_overwritten_while_somebody_still_reads_it() -> None:
    """Replays the placement: a node's output buffer must not hold a value that a later node reads."""
    graph = compile_graph(define_dummy(NAME)).graph
    placed = place_buffers(graph, max_tokens=4, activation=torch.bfloat16)
    holds: dict[int, tuple[object, int]] = {}
    for node in graph.nodes:
        if node.op != "call_function" and node.op != "output":
            continue
        if node.target is not operator.getitem:
            for source in node.all_input_nodes:
                if source.op == "call_function":
                    value = resolve(source)
                    assert holds[placed[value[0]][value[1]].data_ptr()] == value, f"{node} reads a stale {source}"
        if isinstance(node.target, Op):
            inputs = {
                placed[v[0]][v[1]].data_ptr()
                for s in node.all_input_nodes
                if s.op == "call_function"
                for v in [resolve(s)]
            }
            for index, buffer in enumerate(placed[node]):
                assert buffer.data_ptr() not in inputs, f"{node} writes over its own input"
                holds[buffer.data_ptr()] = (node, index)


def test_thirty_layers_need_the_buffers_of_one() -> None:
    graph = compile_graph(define_dummy(NAME)).graph
    placed = place_buffers(graph, max_tokens=4, activation=torch.bfloat16)
    buffers = {buffer.data_ptr() for outputs in placed.values() for buffer in outputs}
    assert len(buffers) < 14
