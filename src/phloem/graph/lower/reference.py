"""The portable way to run a lowered graph: node by node on the ops' references, in plain torch. Correct and slow."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from phloem.graph.capture.inputs import StepDims, StepInputs
from phloem.graph.cost import StepLoad
from phloem.graph.lower.program import Collectives, OpTime, op_time
from phloem.graph.ops.contract import Op


class ReferenceProgram:
    """Interprets a lowered graph.

    `parameters` has a tensor for every `get_attr` target; `caches` one `[P, 2, S, K, d]` tensor for every cache
    placeholder.
    """

    def __init__(
        self,
        *,
        graph: fx.Graph,
        parameters: Mapping[str, torch.Tensor],
        caches: Mapping[str, torch.Tensor],
        inputs: StepInputs,
        collectives: Collectives = MappingProxyType({}),
    ) -> None:
        self.inputs = inputs
        self._collectives = collectives
        self._nodes = list(graph.nodes)
        self._parameters = parameters
        self._caches = caches
        self._last_uses = _last_uses(self._nodes)

    @torch.inference_mode()
    def run(self, dims: StepDims) -> torch.Tensor:
        """Logits `[num_logits, vocabulary]` float32."""
        return self._interpret(dims, self._call)

    def _interpret(self, dims: StepDims, call: Callable[[fx.Node, Mapping[fx.Node, Any]], Any]) -> torch.Tensor:
        values: dict[fx.Node, Any] = {}
        step_inputs = self.inputs.in_use(dims)
        for node in self._nodes:
            if node.op == "placeholder":
                name = str(node.target)
                values[node] = step_inputs[name] if name in step_inputs else self._caches[name]
            elif node.op == "get_attr":
                values[node] = self._parameters[str(node.target)]
            elif node.op == "output":
                logits: torch.Tensor = values[node.all_input_nodes[0]]
                return logits.float()
            else:
                values[node] = call(node, values)
            for dead in self._last_uses[node]:
                del values[dead]
        raise AssertionError("the graph has no output")

    @torch.inference_mode()
    def profile(self, dims: StepDims, load: StepLoad) -> list[OpTime]:
        """Every op as `run` computes it."""
        times: list[OpTime] = []

        def timed(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
            began_s = time.perf_counter()
            result = self._call(node, values)
            if isinstance(node.target, Op):
                times.append(op_time(node, time.perf_counter() - began_s, load=load, stored=self._stored))
            return result

        self._interpret(dims, timed)
        return times

    def _stored(self, name: str) -> int:
        return self._parameters[name].nbytes

    def argmax(self, dims: StepDims) -> Sequence[int] | None:
        """Not known without another pass over the logits."""
        return None

    def close(self) -> None:
        """Nothing to give back."""

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        args: tuple[Any, ...] = fx.node.map_arg(node.args, values.__getitem__)
        target: Any = node.target
        if isinstance(target, Op):
            return self._collectives.get(target.name, target)(*args)
        assert target in (operator.add, operator.getitem), f"{target} is not lowered"
        return target(*args)


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Which values die after each node."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last[source] = node
    dying: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for source, node in last.items():
        dying[node].append(source)
    return dying
