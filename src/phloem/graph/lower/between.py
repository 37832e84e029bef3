"""What a tape stops for: ops that this process cannot compute alone, called between two parts of the tape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from phloem.graph.capture.inputs import StepDims
from phloem.graph.ir import is_call
from phloem.graph.lower.program import Collectives
from phloem.graph.ops.collective import send
from phloem.graph.ops.contract import Op
from phloem.graph.ops.vocabulary import COLLECTIVE_OPS


@dataclass(frozen=True)
class Between:
    """One call over the rows in use of static buffers: `outs[:rows] = function(arguments[:rows] ...)`."""

    function: Callable[..., Any]
    arguments: Sequence[Any]  # buffers [max_tokens, ...] and constants
    outs: Sequence[torch.Tensor]
    counts_logits: bool

    def run(self, dims: StepDims) -> None:
        """Make the call for a step."""
        rows = dims.num_logits if self.counts_logits else dims.num_tokens
        if rows:
            arguments = (each[:rows] if isinstance(each, torch.Tensor) else each for each in self.arguments)
            results = self.function(*arguments)
            for out, result in zip(self.outs, results if isinstance(results, tuple) else (results,), strict=True):
                out[:rows] = result.reshape(out[:rows].shape)


def is_between(node: fx.Node) -> bool:
    """Whether the tape stops for this node."""
    return isinstance(node.target, Op) and node.target.name in COLLECTIVE_OPS


def function_of(node: fx.Node, collectives: Collectives) -> Callable[..., Any]:
    """The process's own function behind the node's op, or the op's reference where it talks to nobody."""
    op = node.target
    assert isinstance(op, Op)
    return collectives.get(op.name, op.reference)


def makes_logits(graph: fx.Graph) -> bool:
    """False for a stage of a pipeline that is not the last: its output went to the next."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    (result,) = output.all_input_nodes
    return not is_call(result, send)
