"""Where each intermediate value of a lowered graph lies: static buffers, shared by values that never live together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from phloem.graph.ops.contract import Op, Spec

_DTYPES = {"float32": torch.float32, "int32": torch.int32}


def place_buffers(
    graph: fx.Graph, *, max_tokens: int, activation: torch.dtype
) -> Mapping[fx.Node, tuple[torch.Tensor, ...]]:
    """The output buffers of every op call, `[max_tokens, width]` each; several for an op with several results.

    A linear scan: a buffer is free again after the last use of its value, and the next value of the same size and type
    takes the one freed last, which is the likeliest to be in cache.
    """
    nodes = list(graph.nodes)
    releases = _releases(nodes)
    free: dict[tuple[int, torch.dtype], list[torch.Tensor]] = {}
    placed: dict[fx.Node, tuple[torch.Tensor, ...]] = {}

    def take(spec: Spec) -> torch.Tensor:
        width = 1
        for dim in spec.shape[1:]:
            assert isinstance(dim, int), f"{spec} has a second dim that is not known before the step"
            width *= dim
        key = (width, _DTYPES.get(spec.dtype, activation))
        waiting = free.get(key)
        return waiting.pop() if waiting else torch.empty(max_tokens, width, dtype=key[1])

    for node in nodes:
        if isinstance(node.target, Op):
            spec = node.meta["spec"]
            placed[node] = tuple(take(part) for part in (spec if isinstance(spec, tuple) else (spec,)))
        for owner, index in releases[node]:
            buffer = placed[owner][index]
            free.setdefault((buffer.shape[1], buffer.dtype), []).append(buffer)
    return placed


def resolve(node: fx.Node) -> tuple[fx.Node, int]:
    """The op call that a value comes from, and which of its results it is."""
    if isinstance(node.target, Op):
        return node, 0
    source, index = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(index, int)
    return source, index


def _releases(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[tuple[fx.Node, int]]]:
    """Which results are read for the last time by each node. Results nobody reads are released where they are made."""
    last: dict[tuple[fx.Node, int], fx.Node] = {}
    for node in nodes:
        if isinstance(node.target, Op):
            spec = node.meta["spec"]
            for index in range(len(spec) if isinstance(spec, tuple) else 1):
                last[node, index] = node
        for source in node.all_input_nodes:
            if source.op != "call_function" or (node.op == "call_function" and not isinstance(node.target, Op)):
                continue
            last[resolve(source)] = node
    releases: dict[fx.Node, list[tuple[fx.Node, int]]] = {node: [] for node in nodes}
    for value, node in last.items():
        if node.op != "output":
            releases[node].append(value)
    return releases
