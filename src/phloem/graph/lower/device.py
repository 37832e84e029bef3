"""Running a lowered graph on a device: node by node, each op by the function chosen for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from phloem.graph.ops.contract import Op
from phloem.kernels.triton.attention_shape import AttentionShape

Function = Callable[..., Any]

TAKE_SHAPE = frozenset({"paged_attention", "rope_attention"})
"""Ops whose device functions are also told the step's host-known sizes, as `shape=`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One op: the registers of its arguments, of its result, and those whose values nobody reads after it."""

    node: fx.Node
    function: Function
    arguments: tuple[int, ...]
    result: int
    dead: tuple[int, ...]
    takes_shape: bool


class Tape:
    """A lowered graph as calls over numbered registers, so that a call costs little more than its launches.

    Intermediate tensors are allocated by the functions; under graph capture they come from the graph's pool. Nothing
    here waits for the device. `caches` has one `[P, 2, S, K, d]` tensor for every cache placeholder, `functions` one
    function for every op name.
    """

    def __init__(
        self,
        graph: fx.Graph,
        *,
        functions: Mapping[str, Function],
        parameters: Mapping[str, torch.Tensor],
        caches: Mapping[str, torch.Tensor],
    ) -> None:
        self._parameters = parameters
        self._fixed: list[Any] = []  # one entry a register: parameters, caches and constants are there for good
        self._inputs: list[tuple[str, int]] = []
        self._calls: list[Call] = []
        self._logits = -1
        known: dict[fx.Node, int] = {}
        dying = _last_uses(graph)
        for node in graph.nodes:
            match node.op:
                case "placeholder":
                    name = str(node.target)
                    known[node] = self._register(caches.get(name))
                    if name not in caches:
                        self._inputs.append((name, known[node]))
                case "get_attr":
                    known[node] = self._register(parameters[str(node.target)])
                case "output":
                    self._logits = known[node.all_input_nodes[0]]
                case _:
                    arguments = tuple(
                        known[each] if isinstance(each, fx.Node) else self._register(each) for each in node.args
                    )
                    known[node] = self._register(None)
                    dead = tuple(known[each] for each in dying[node])
                    takes_shape = isinstance(node.target, Op) and node.target.name in TAKE_SHAPE
                    self._calls.append(
                        Call(node, _function(node, functions), arguments, known[node], dead, takes_shape)
                    )
        assert self._logits >= 0, "the graph has no output"

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        shape: AttentionShape,
        *,
        after: Callable[[fx.Node], object] | None = None,
    ) -> torch.Tensor:
        """Logits `[num_logits, vocabulary]` float32. `after` hears of each node that was launched."""
        values = self._fixed.copy()
        for name, register in self._inputs:
            values[register] = inputs[name]
        for call in self._calls:
            arguments = [values[register] for register in call.arguments]
            values[call.result] = (
                call.function(*arguments, shape=shape) if call.takes_shape else call.function(*arguments)
            )
            for register in call.dead:
                values[register] = None
            if after is not None:
                after(call.node)
        logits: torch.Tensor = values[self._logits]
        return logits

    def num_bytes(self, name: str) -> int:
        """What a parameter takes in memory."""
        return self._parameters[name].nbytes

    def _register(self, value: Any) -> int:
        self._fixed.append(value)
        return len(self._fixed) - 1


class DeviceProgram:
    """A model on one device: one tape for steps of any size, and maybe one for those that `is_small` says are small."""

    def __init__(
        self, tape: Tape, *, small: Tape | None = None, is_small: Callable[[AttentionShape], bool] | None = None
    ) -> None:
        self._tape = tape
        self._small = small
        self._is_small = is_small

    def tape(self, shape: AttentionShape) -> Tape:
        """What a step of these sizes runs."""
        if self._small is not None and self._is_small is not None and self._is_small(shape):
            return self._small
        return self._tape

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, torch.Tensor], shape: AttentionShape) -> torch.Tensor:
        """Logits `[num_logits, vocabulary]` float32 of step inputs cut to `shape` (graph/capture/inputs)."""
        return self.tape(shape).run(inputs, shape)


def call_function(
    op: Op, functions: Mapping[str, Function], arguments: Sequence[Any], shape: AttentionShape
) -> Callable[[], Any]:
    """One call of an op's function, to be made later."""
    if op.name in TAKE_SHAPE:
        return partial(functions[op.name], *arguments, shape=shape)
    return partial(functions[op.name], *arguments)


def _function(node: fx.Node, functions: Mapping[str, Function]) -> Function:
    target: Any = node.target
    if isinstance(target, Op):
        return functions[target.name]
    assert target in (operator.add, operator.getitem), f"{node} is not lowered"
    function: Function = target
    return function


def _last_uses(graph: fx.Graph) -> Mapping[fx.Node, Sequence[fx.Node]]:
    """Which results die after each node; inputs and parameters never do."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    dying: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.nodes}
    for source, node in last.items():
        if source.op == "call_function" and node.op != "output":
            dying[node].append(source)
    return dying
