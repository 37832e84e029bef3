"""The verifier catches what a broken pass would leave behind, and says where."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from phloem.graph.ir import GraphError, Stage, calls, copy_graph, placeholders
from phloem.graph.ops.contract import Spec
from phloem.graph.ops.lowered import add_rms_norm, silu_mul
from phloem.graph.ops.model import columns, linear, rms_norm
from phloem.graph.verify import verify
from phloem.graph.weights import Stored


def first(stage: Stage, target: object) -> fx.Node:
    return next(iter(calls(stage.graph, target)))


def unknown_op(stage: Stage) -> None:
    first(stage, silu_mul).target = torch.relu


def method_call(stage: Stage) -> None:
    node = first(stage, linear)
    with stage.graph.inserting_after(node):
        view = stage.graph.call_method("view", (node, -1))
    view.meta["spec"] = node.meta["spec"]
    node.replace_all_uses_with(view)
    view.args = (node, -1)


def dead_node(stage: Stage) -> None:
    node = first(stage, silu_mul)
    with stage.graph.inserting_after(node):
        stage.graph.create_node("call_function", silu_mul, (node,), name="useless")


def wrong_order(stage: Stage) -> None:
    node = first(stage, linear)
    node.append(node.args[0])


def wrong_shape(stage: Stage) -> None:
    node = first(stage, linear)
    stage.recipes[node.args[1].target] = Stored("x", (3, 3))


def stale_spec(stage: Stage) -> None:
    first(stage, rms_norm).meta["spec"] = Spec(("T", 7))


def missing_recipe(stage: Stage) -> None:
    del stage.recipes["norm.weight"]


def unread_recipe(stage: Stage) -> None:
    stage.recipes["left.over"] = Stored("x", (1,))


def unknown_input(stage: Stage) -> None:
    placeholders(stage.graph)[0].target = "tokens"


def missing_input(stage: Stage) -> None:
    length, starts = (
        next(p for p in placeholders(stage.graph) if p.target == t) for t in ("context_len", "shared_pages")
    )
    starts.replace_all_uses_with(length)
    stage.graph.erase_node(starts)


def half_a_result(stage: Stage) -> None:
    node = first(stage, add_rms_norm)
    (normed, _) = sorted(node.users, key=lambda user: user.args[1])
    normed.args = (node, 2)


def keyword_argument(stage: Stage) -> None:
    node = first(stage, rms_norm)
    node.args, node.kwargs = node.args[:2], {"eps": 1e-5}


def output_not_logits(stage: Stage) -> None:
    *_, lm_head = calls(stage.graph, linear)
    lm_head.args = (*lm_head.args[:3], False)
    del lm_head.meta["spec"]


def model_level_op(stage: Stage) -> None:
    node = first(stage, silu_mul)
    with stage.graph.inserting_after(node):
        part = stage.graph.create_node("call_function", columns, (node, 0, 128), name="part")
    node.replace_all_uses_with(part)
    part.args = (node, 0, 128)


def plain_addition(stage: Stage) -> None:
    node = first(stage, silu_mul)
    with stage.graph.inserting_after(node):
        total = stage.graph.create_node("call_function", operator.add, (node, node), name="total")
    node.replace_all_uses_with(total)
    total.args = (node, node)


FAULTS: dict[str, Callable[[Stage], None]] = {
    r"node silu_mul \(relu\) is not an op": unknown_op,
    r"node view \(call_method\) is a call_method": method_call,
    r"node useless \(silu_mul\) is dead": dead_node,
    "used before it has been defined": wrong_order,
    r"node linear_\d+ \(linear\) columns of x and weight differ": wrong_shape,
    r"node rms_norm \(rms_norm\) is marked act\[T, 7\]": stale_spec,
    r"'norm.weight', which has no recipe": missing_recipe,
    "recipes that no node reads: left.over": unread_recipe,
    "node token_ids .* not a declared step input": unknown_input,
    r"lacks the inputs \['shared_pages'\]": missing_input,
    r"node getitem.* \(getitem\)": half_a_result,
    r"node rms_norm \(rms_norm\) arguments are not complete": keyword_argument,
    r"node output \(output\) the output is act\[L, 320\]": output_not_logits,
    r"node part \(columns\) is not an op of the lowered vocabulary": model_level_op,
    r"node total \(add\) is not an op of the lowered vocabulary": plain_addition,
}


@pytest.mark.parametrize("complaint", FAULTS)
def test_a_seeded_fault_is_caught_and_located(compiled, complaint: str) -> None:
    """Red if this fault passes the verifier, or the error does not say after which pass and at which node."""
    final = compiled("llama-tiny")
    stage = Stage("some_pass", copy_graph(final.graph), dict(final.recipes))
    verify(stage, final.layers, lowered=True)
    FAULTS[complaint](stage)
    with pytest.raises(GraphError, match=complaint) as error:
        verify(stage, final.layers, lowered=True)
    assert str(error.value).startswith("after some_pass: ")


def test_every_stage_of_every_family_verifies(compiled) -> None:
    """Red if a stage is consistent only because nobody looked."""
    for model in ("llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny"):
        step = compiled(model)
        for stage in step.stages:
            verify(stage, step.layers, lowered=stage is step.stages[-1])
