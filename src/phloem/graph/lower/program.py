"""What every lowering ends in, whatever the device: a graph with its weights, and the program a step runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx

from phloem.graph.capture.inputs import StepDims, StepInputs
from phloem.graph.cost import StepLoad, node_cost
from phloem.graph.ir import target_name


@dataclass(frozen=True)
class OpTime:
    """One op of one step: what it was, how long it took, and what the cost model says it moved and computed.

    `op` is the op's name, and the parameter's for a linear, without the layer.
    """

    op: str
    seconds: float
    num_bytes: int
    flops: int


def op_time(node: fx.Node, seconds: float, *, load: StepLoad, stored: Callable[[str], int]) -> OpTime:
    """A node's time beside its cost. `stored(name)` is how many bytes a parameter takes in memory."""
    cost = node_cost(node, load, stored)
    parts = [target_name(node)]
    if parts[0] == "linear":
        weight = node.all_input_nodes[1]
        parts.append(".".join(part for part in str(weight.target).split(".")[-3:-1] if not part.isdigit()))
    return OpTime(" ".join(parts), seconds, cost.num_bytes, cost.flops)


@dataclass(frozen=True)
class StepTimes:
    """Where a step's time goes. `whole_s` is the same step run at once, where that is not the sum of its ops."""

    ops: list[OpTime]
    whole_s: float | None = None


@dataclass(frozen=True)
class Ceilings:
    """What a device can do at most, measured on it."""

    bytes_per_s: float
    flops_per_s: float

    def share(self, op: OpTime) -> float:
        """How near an op's time is to the least it could take: 1 is at the ceiling."""
        return max(op.num_bytes / self.bytes_per_s, op.flops / self.flops_per_s) / op.seconds


class StepProgram(Protocol):
    """A compiled model: static inputs, and one call that turns them into logits."""

    inputs: StepInputs

    def run(self, dims: StepDims) -> torch.Tensor:
        """Logits `[num_logits, vocabulary]` float32 of the tokens in `logit_rows`; valid until the next run."""

    def argmax(self, dims: StepDims) -> Sequence[int] | None:
        """The most likely token of each of those rows, where the program has it for free."""

    def profile(self, dims: StepDims, load: StepLoad) -> list[OpTime]:
        """Run a step op by op and time each. `load` is the same step as the cost model sees it."""

    def close(self) -> None:
        """Give back threads and memory."""


Collectives = Mapping[str, Callable[..., Any]]
"""The functions behind collective ops, by op name: what `parallel.comm.Comm.bound` returns."""


class Capture(Protocol):
    """A graph with its weights in memory, waiting for the buffers of a step."""

    def __call__(self, *, caches: Sequence[torch.Tensor], inputs: StepInputs) -> StepProgram:
        """The program over one cache tensor a layer and these static inputs."""
