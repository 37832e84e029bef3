"""What passes work on: a stage is an fx graph over the op vocabulary and a recipe for each of its parameters.

    placeholder     a step input (STEP_INPUTS) or one layer's cache, `kv_cache_0`, `kv_cache_1` ...
    get_attr        a parameter; its target is a key of `recipes`
    call_function   an Op with complete positional arguments, `operator.add` or `operator.getitem`
    output          the logits

Each node's `meta["spec"]` is its shape and type (for ops with several results a tuple of them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import fx

from phloem.core.errors import PhloemError
from phloem.graph.ops.contract import Op, Spec
from phloem.graph.weights import WeightRecipe
from phloem.memory.spec import FullAttention

STEP_INPUTS: Mapping[str, Spec] = MappingProxyType(
    {
        "token_ids": Spec(("T",), "int32"),
        "positions": Spec(("T",), "int32"),
        "slots": Spec(("T",), "int32"),
        "logit_rows": Spec(("L",), "int32"),
        "query_start": Spec(("R+1",), "int32"),
        "context_len": Spec(("R",), "int32"),
        "block_table": Spec(("R", "max_pages"), "int32"),
        "shared_start": Spec(("G+1",), "int32"),
        "shared_rows": Spec(("rows of G",), "int32"),
        "shared_pages": Spec(("G",), "int32"),
    }
)
ATTENTION_META = ("query_start", "context_len", "block_table", "shared_start", "shared_rows", "shared_pages")


class GraphError(PhloemError):
    """A pass broke the graph, or a model uses what no pass knows: our mistake, not the caller's."""

    code = "broken_graph"


@dataclass(frozen=True)
class Stage:
    """The graph after the pass `name`, and how to make each parameter it reads. Passes never change a stage."""

    name: str
    graph: fx.Graph
    recipes: Mapping[str, WeightRecipe]


@dataclass(frozen=True)
class StepGraph:
    """A compiled model: what one step computes, in lowered ops. `stages` are the graphs on the way, this one last."""

    graph: fx.Graph
    recipes: Mapping[str, WeightRecipe]
    layers: tuple[FullAttention, ...]
    stages: tuple[Stage, ...]


Pass = Callable[[Stage], Stage]


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy that a pass may edit: same names, targets and specs."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def calls(graph: fx.Graph, target: Op | Callable[..., Any]) -> Iterator[fx.Node]:
    """The nodes that call `target`, in order; the graph may be edited meanwhile."""
    return (node for node in list(graph.nodes) if is_call(node, target))


def is_call(node: object, target: Op | Callable[..., Any]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def add_placeholder(graph: fx.Graph, name: str, spec: Spec) -> fx.Node:
    """A new input after those there are."""
    with graph.inserting_after(placeholders(graph)[-1]):
        node = graph.placeholder(name)
    node.meta["spec"] = spec
    return node


def cache_name(layer: int) -> str:
    """The placeholder of the layer's KV cache."""
    return f"kv_cache_{layer}"


def cache_spec(num_kv_heads: int, head_dim: int) -> Spec:
    """One layer's cache: P pages of S tokens, keys and values; stored in the activation type."""
    return Spec(("P", 2, "S", num_kv_heads, head_dim), "act")


def spec_of(node: fx.Node) -> Spec:
    """The shape and type of a node with one result."""
    spec = node.meta["spec"]
    assert isinstance(spec, Spec), f"{node.name} has several results"
    return spec


def target_name(node: fx.Node) -> str:
    """How a node's target is called in tables and errors."""
    if isinstance(node.target, Op):
        return node.target.name
    if node.op == "call_function":
        return str(node.target) if isinstance(node.target, str) else node.target.__name__
    return node.op
