"""The verifier: runs after tracing and after every pass, so that a mistake is caught where it is made."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from phloem.graph.ir import STEP_INPUTS, GraphError, Stage, cache_name, cache_spec, placeholders, target_name
from phloem.graph.ops.contract import Op, ShapeError, Spec
from phloem.graph.ops.vocabulary import COLLECTIVE_OPS, EXPERT_OPS, LOWERED_OPS, OPS, QUANTIZED_OPS
from phloem.memory.spec import FullAttention

Specs = Spec | tuple[Spec, ...]


def verify(
    stage: Stage, layers: tuple[FullAttention, ...], *, lowered: bool = False, whole: bool = True
) -> dict[fx.Node, Specs]:
    """The spec of every node. GraphError, naming pass and node, unless: nodes are in order and none is dead; each op is
    known (and, where `lowered`, of the lowered vocabulary); the shape rules agree with each other and with the specs on
    the nodes; inputs are declared ones, and of a lowered, `whole` model all; parameters and recipes match one to one;
    the output is float32, `[rows, width]`."""
    try:
        stage.graph.lint()
    except RuntimeError as error:
        raise GraphError(f"after {stage.name}: {error}") from error
    vocabulary = {**LOWERED_OPS, **EXPERT_OPS, **COLLECTIVE_OPS, **QUANTIZED_OPS} if lowered else OPS
    allowed = {id(op) for op in vocabulary.values()} | {id(operator.getitem)}
    allowed |= set() if lowered else {id(operator.add)}
    for node in stage.graph.nodes:
        if node.op == "call_function" and id(node.target) not in allowed:
            raise _fault(stage, node, f"is not an op of the {'lowered ' if lowered else ''}vocabulary")
        if node.op in ("call_module", "call_method"):
            raise _fault(stage, node, f"is a {node.op} of {node.target}; models call ops only")
        if node.op in ("call_function", "get_attr") and not node.users:
            raise _fault(stage, node, "is dead: nothing uses its result")
    _check_inputs(stage, layers, wants_all=lowered and whole)
    _check_recipes(stage)
    specs = infer_specs(stage, {cache_name(i): cache_spec(x.num_kv_heads, x.head_dim) for i, x in enumerate(layers)})
    for node, spec in specs.items():
        if node.meta.get("spec", spec) != spec:
            raise _fault(stage, node, f"is marked {node.meta['spec']} but the rules say {spec}")
    return specs


def infer_specs(stage: Stage, caches: Mapping[str, Spec]) -> dict[fx.Node, Specs]:
    """The shape and type of every node by the shape rules, from the declared inputs on."""
    declared = {**STEP_INPUTS, **caches}
    specs: dict[fx.Node, Specs] = {}
    for node in stage.graph.nodes:
        try:
            if node.op == "placeholder":
                specs[node] = declared[str(node.target)]
            elif node.op == "get_attr":
                specs[node] = Spec(stage.recipes[str(node.target)].shape, "weight")
            elif node.op == "call_function":
                specs[node] = _result(node, [specs[arg] if isinstance(arg, fx.Node) else arg for arg in node.args])
            else:
                _check_output(specs[node.args[0]])
        except (ShapeError, TypeError, ValueError, IndexError) as error:
            raise _fault(stage, node, str(error)) from error
    return specs


def _result(node: fx.Node, args: list[Any]) -> Specs:
    if isinstance(node.target, Op):
        if node.kwargs or len(args) != len(node.target.signature.parameters):
            raise ShapeError("arguments are not complete and positional")
        return node.target.shape(*args)
    if node.target is operator.getitem:
        result: Spec = args[0][args[1]]
        return result
    a, b = args
    if a.shape != b.shape:
        raise ShapeError(f"adds {a} and {b}")
    return Spec(a.shape, "float32" if "float32" in (a.dtype, b.dtype) else "act")


def _check_output(spec: Specs) -> None:
    if not isinstance(spec, Spec) or spec.dtype != "float32" or len(spec.shape) != 2:
        raise ShapeError(f"the output is {spec}, expected float32 logits")


def _check_inputs(stage: Stage, layers: tuple[FullAttention, ...], *, wants_all: bool) -> None:
    caches = [cache_name(layer) for layer in range(len(layers))]
    names = [str(node.target) for node in placeholders(stage.graph)]
    for node in placeholders(stage.graph):
        if node.target not in STEP_INPUTS and node.target not in caches:
            raise _fault(stage, node, "is not a declared step input")
    if len(set(names)) < len(names):
        raise GraphError(f"after {stage.name}: an input is declared twice: {names}")
    missing = {*STEP_INPUTS, *caches} - set(names)
    if wants_all and missing:
        raise GraphError(f"after {stage.name}: the lowered graph lacks the inputs {sorted(missing)}")


def _check_recipes(stage: Stage) -> None:
    read: set[str] = set()
    for node in stage.graph.nodes:
        if node.op == "get_attr":
            read.add(str(node.target))
            if node.target not in stage.recipes:
                raise _fault(stage, node, f"reads the parameter {node.target!r}, which has no recipe")
    unread = sorted(set(stage.recipes) - read)
    if unread:
        raise GraphError(f"after {stage.name}: recipes that no node reads: {', '.join(unread)}")


def _fault(stage: Stage, node: fx.Node, problem: str) -> GraphError:
    return GraphError(f"after {stage.name}: node {node.name} ({target_name(node)}) {problem}")
