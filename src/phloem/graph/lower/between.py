"""What a tape stops for: ops that this process cannot compute alone, and mixtures of experts, whose products are as
large as a call of torch and depend on what was routed. They are called between two parts of the tape."""

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
from phloem.graph.ops.experts import moe
from phloem.graph.ops.vocabulary import COLLECTIVE_OPS


@dataclass(frozen=True)
class Between:
    """One call over the rows in use of static buffers: `outs[:rows] = function(arguments[:rows] ...)`."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    is_buffer: Sequence[bool]  # of each argument: whether it is [max_tokens, ...], not a parameter or a constant
    outs: Sequence[torch.Tensor]
    counts_logits: bool

    def run(self, dims: StepDims) -> None:
        """Make the call for a step."""
        rows = dims.num_logits if self.counts_logits else dims.num_tokens
        if rows:
            arguments = (each[:rows] if cut else each for each, cut in zip(self.arguments, self.is_buffer, strict=True))
            results = self.function(*arguments)
            for out, result in zip(self.outs, results if isinstance(results, tuple) else (results,), strict=True):
                out[:rows] = result.reshape(out[:rows].shape)


def is_between(node: fx.Node) -> bool:
    """Whether the tape stops for this node."""
    return isinstance(node.target, Op) and (node.target.name in COLLECTIVE_OPS or node.target is moe)


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


def read_between(graph: fx.Graph) -> frozenset[str]:
    """The parameters that are read while a tape stops: they stay plain tensors."""
    nodes = (source for node in graph.nodes if is_between(node) for source in node.all_input_nodes)
    return frozenset(str(node.target) for node in nodes if node.op == "get_attr")
