"""What a node costs: bytes that cross memory and floating-point operations, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from torch import fx

from phloem.graph.ir import spec_of, target_name
from phloem.graph.ops.contract import Dim, Spec

BYTES_OF = {"float32": 4, "int32": 4}
FLOPS_PER_NUMBER = {
    "rms_norm": 4,
    "add_rms_norm": 5,
    "rope": 6,
    "rope_kv_write": 6,
    "swiglu": 5,
    "silu_mul": 5,
    "add": 1,
}
VIEWS = {"columns", "heads", "getitem"}  # no bytes move


@dataclass(frozen=True)
class StepLoad:
    """One step: `num_tokens` new tokens in `num_rows` sequences of `context` tokens, these included; of those tokens
    `num_logits` want logits. Activations and KV cache take `bytes_per_number`."""

    num_tokens: int
    num_logits: int = 1
    num_rows: int = 1
    context: int = 1024
    bytes_per_number: int = 2

    def size(self, dim: Dim) -> int:
        """A dim as a number."""
        return dim if isinstance(dim, int) else {"T": self.num_tokens, "L": self.num_logits}[dim]

    def num_bytes(self, spec: Spec) -> int:
        """Bytes of an activation."""
        return prod(map(self.size, spec.shape)) * BYTES_OF.get(spec.dtype, self.bytes_per_number)


DECODE = StepLoad(num_tokens=1)
PREFILL = StepLoad(num_tokens=512, context=512)


@dataclass(frozen=True)
class Cost:
    """Bytes of weights, of activations and of KV cache, read or written; floating-point operations."""

    weight_bytes: int = 0
    activation_bytes: int = 0
    kv_bytes: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weight_bytes + other.weight_bytes,
            self.activation_bytes + other.activation_bytes,
            self.kv_bytes + other.kv_bytes,
            self.flops + other.flops,
        )

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.kv_bytes


def node_cost(node: fx.Node, load: StepLoad, stored: Callable[[str], int]) -> Cost:
    """The cost of one call. `stored(name)` is how many bytes a parameter takes in memory."""
    name = target_name(node)
    if node.op != "call_function" or name in VIEWS:
        return Cost()
    special = {
        "embed": _embed,
        "linear": _linear,
        "linear_fp8": _linear,
        "attention": _attention,
        "paged_attention": _paged_attention,
        "select_rows": _select_rows,
        "norm_linear": _fused_linear,
        "norm_gated_linear": _fused_linear,
        "linear_add": _fused_linear,
        "rope_attention": _rope_attention,
        "moe": _moe,
        "moe_exchange": _moe,
    }
    specs = node.meta["spec"] if isinstance(node.meta["spec"], tuple) else (node.meta["spec"],)
    inputs = [arg for arg in node.all_input_nodes if arg.op != "placeholder"]
    parameters = [arg for arg in inputs if arg.op == "get_attr"]
    moved = [spec_of(arg) for arg in inputs if arg.op != "get_attr"]
    cost = Cost(
        weight_bytes=sum(stored(str(arg.target)) for arg in parameters),
        activation_bytes=sum(map(load.num_bytes, [*moved, *specs])),
        flops=FLOPS_PER_NUMBER.get(name, 0) * prod(map(load.size, specs[0].shape)),
    )
    if name == "rope_kv_write":
        cache = _spec(node.args[-1])
        return cost + Cost(kv_bytes=load.num_tokens * _bytes_per_token(cache, load))
    return special[name](node, load, cost) if name in special else cost


def total_cost(graph: fx.Graph, load: StepLoad, stored: Callable[[str], int]) -> Cost:
    """The cost of a whole step."""
    return sum((node_cost(node, load, stored) for node in graph.nodes), Cost())


def _embed(node: fx.Node, load: StepLoad, cost: Cost) -> Cost:
    """Only the rows of the step's tokens are read."""
    num_rows = load.size(_spec(node.args[1]).shape[0])
    return Cost(weight_bytes=cost.weight_bytes * load.num_tokens // num_rows, activation_bytes=cost.activation_bytes)


def _linear(node: fx.Node, load: StepLoad, cost: Cost) -> Cost:
    return cost + Cost(flops=2 * prod(map(load.size, _spec(node.args[0]).shape)) * load.size(spec_of(node).shape[1]))


def _moe(node: fx.Node, load: StepLoad, cost: Cost) -> Cost:
    """The experts that some token chose, if all are as likely; three products a chosen expert."""
    experts, (_, width) = _spec(node.args[1]).shape[1], _spec(node.args[3]).shape
    tokens, hidden = map(load.size, _spec(node.args[0]).shape)
    top_k = node.args[4]
    assert isinstance(top_k, int)
    touched = 1 - (1 - top_k / load.size(experts)) ** tokens
    flops = 6 * tokens * top_k * hidden * load.size(width)
    return Cost(weight_bytes=round(cost.weight_bytes * touched), activation_bytes=cost.activation_bytes, flops=flops)


def _select_rows(node: fx.Node, load: StepLoad, cost: Cost) -> Cost:
    """Only the rows that go on are read."""
    return Cost(activation_bytes=2 * load.num_bytes(spec_of(node)))


def _fused_linear(node: fx.Node, load: StepLoad, cost: Cost) -> Cost:
    """A product with the only matrix among its parameters, and little else."""
    sizes = [prod(map(load.size, spec_of(arg).shape)) for arg in node.all_input_nodes if arg.op == "get_attr"]
    return cost + Cost(flops=2 * load.num_tokens * max(sizes))


def _rope_attention(node: fx.Node, load: StepLoad, cost: Cost) -> Cost:
    """The new tokens' keys and values are written, and all of them read."""
    cache = next(arg for arg in node.all_input_nodes if arg.op == "placeholder" and len(spec_of(arg).shape) > 2)
    new, window = load.num_tokens // load.num_rows, _window(node, load)
    num_kv = load.num_rows * (min(load.context, window + new - 1) + new)
    numbers = prod(map(load.size, spec_of(node).shape)) // load.num_tokens
    seen = sum(min(position + 1, window) for position in range(load.context - new, load.context))
    kv_bytes = num_kv * _bytes_per_token(spec_of(cache), load)
    return cost + Cost(kv_bytes=kv_bytes, flops=4 * numbers * seen * load.num_rows)


def _attention(node: fx.Node, load: StepLoad, cost: Cost) -> Cost:
    """Two products of a query with each key it sees, over all query heads."""
    _, heads, head_dim = _spec(node.args[0]).shape
    new, window = load.num_tokens // load.num_rows, _window(node, load)
    seen = sum(min(position + 1, window) for position in range(load.context - new, load.context))
    return cost + Cost(flops=4 * load.size(heads) * load.size(head_dim) * seen * load.num_rows)


def _paged_attention(node: fx.Node, load: StepLoad, cost: Cost) -> Cost:
    new = load.num_tokens // load.num_rows
    seen = min(load.context, _window(node, load) + new - 1)
    kv_bytes = load.num_rows * seen * _bytes_per_token(_spec(node.args[1]), load)
    return _attention(node, load, cost) + Cost(kv_bytes=kv_bytes)


def _window(node: fx.Node, load: StepLoad) -> int:
    """How many keys a query sees at most."""
    window = node.args[-1]
    return window if isinstance(window, int) else load.context


def _bytes_per_token(cache: Spec, load: StepLoad) -> int:
    """A key and a value of every KV head."""
    return 2 * prod(map(load.size, cache.shape[-2:])) * load.bytes_per_number


def _spec(arg: object) -> Spec:
    assert isinstance(arg, fx.Node)
    return spec_of(arg)
