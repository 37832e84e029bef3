"""The graph of small steps: what the fusing passes make of a lowered model, and that it computes the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from phloem.graph.compile import PASSES, compile_graph, mark
from phloem.graph.ir import Stage, calls, copy_graph
from phloem.graph.lower import cuda, small
from phloem.graph.lower.device import Tape
from phloem.graph.lower.device_weights import load_parameters
from phloem.graph.ops.fused import linear_add, norm_gated_linear, norm_linear, rope_attention
from phloem.graph.ops.model import linear, rms_norm
from phloem.graph.ops.vocabulary import FUSED_OPS, LOWERED_OPS
from phloem.graph.passes.fuse_norm_linear import fuse_norm_linear
from phloem.graph.passes.quantize_fp8 import quantize_fp8
from phloem.kernels.spec import Machine
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.models.catalog import define_dummy

FAMILIES = ("llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny")
CALLS_A_LAYER = 5


def decode(num_rows: int, **others: int | bool) -> AttentionShape:
    return AttentionShape(num_rows, num_rows, num_rows, 1, 128, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_five_calls(compiled, count, family: str) -> None:
    """Red when a norm, an activation or a sum stays a launch of its own in any family."""
    step = compiled(family)
    stage = small.fuse(step).stages[-1]
    layers = len(step.layers)
    fused = {name: number for name, number in count(stage).items() if name in FUSED_OPS}
    assert fused == {
        "norm_linear": layers, "norm_gated_linear": layers, "linear_add": 2 * layers, "rope_attention": layers
    }  # fmt: skip
    assert sum(fused.values()) == CALLS_A_LAYER * layers
    assert count(stage)["linear"] == count(stage)["rms_norm"] == 1  # the logits and their norm
    assert not count(stage)["getitem"]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_the_lowered_graph_does(family: str) -> None:
    """Red when a pass swaps operands, takes another layer's residual or drops a bias."""
    definition = define_dummy(f"dummy:{family}")
    step = compile_graph(definition)
    parameters = load_parameters(step.recipes, definition.checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    logits = []
    for graph in (step.graph, small.fuse(step).graph):
        shapes = [(4, 2, 32, layer.num_kv_heads, layer.head_dim) for layer in step.layers]
        generator = torch.Generator().manual_seed(1)
        caches = {f"kv_cache_{layer}": torch.randn(shape, generator=generator) for layer, shape in enumerate(shapes)}
        tape = Tape(graph, functions=FUNCTIONS, parameters=parameters, caches=caches)
        logits.append((tape.run(two_rows(), decode(2)), *caches.values()))
    for mine, reference in zip(*logits, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def two_rows() -> dict[str, torch.Tensor]:
    """One token each, at contexts 40 and 3."""
    values: dict[str, object] = {
        "token_ids": [5, 9], "positions": [39, 2], "slots": [32 * 3 + 7, 2], "logit_rows": [0, 1],
        "query_start": [0, 1, 2], "context_len": [40, 3], "block_table": [[1, 3], [0, 0]],
        "shared_start": [0], "shared_rows": [], "shared_pages": [],
    }  # fmt: skip
    return {name: torch.tensor(value, dtype=torch.int32) for name, value in values.items()}


def without_shape(op):
    return lambda *arguments, shape: op(*arguments)


FUNCTIONS = {
    **LOWERED_OPS,
    **FUSED_OPS,
    "paged_attention": without_shape(LOWERED_OPS["paged_attention"]),
    "rope_attention": without_shape(FUSED_OPS["rope_attention"]),
}


def test_what_others_read_is_not_fused_away(compiled) -> None:
    """Red when a norm with two readers is computed in one of them only, or the linear of the logits is taken."""
    step = compiled("qwen3-tiny")
    assert [node.args[3] for node in calls(small.fuse(step).graph, linear)] == [True]
    graph = copy_graph(step.graph)
    norm = next(calls(graph, rms_norm))
    (reader,) = norm.users
    with graph.inserting_after(reader):
        twin = graph.node_copy(reader)
    reader.replace_all_uses_with(twin)
    fused = fuse_norm_linear(Stage("twins", graph, step.recipes)).graph
    assert len(list(calls(fused, rms_norm))) == 1
    assert not list(calls(fused, norm_linear))


def test_weights_in_8_bits_are_left_to_their_own_product() -> None:
    """Red when a linear over quantized weights is fused as if they were plain."""
    step = compile_graph(define_dummy("dummy:qwen3-tiny"), (*PASSES, quantize_fp8))
    graph = small.fuse(step).graph
    assert not [node for op in (norm_linear, norm_gated_linear, linear_add) for node in calls(graph, op)]
    assert len(list(calls(graph, rope_attention))) == len(step.layers)


def test_which_steps_are_small() -> None:
    """Red when a step runs fused ops that cannot hold it, or whose bits may differ from what was promised."""
    is_small = partial(small.is_small, max_rows=2)
    assert is_small(decode(1))
    assert is_small(decode(2))
    assert not is_small(decode(3))
    assert not is_small(decode(2, num_shared=1))
    assert not is_small(decode(1, deterministic=True))
    assert not is_small(AttentionShape(1, 8, 0, 8, 128))


def test_light_layers_are_fused_for_more_rows(compiled) -> None:
    """Red when the rule counts the table of logits, or all layers as one."""
    assert small.max_rows(compiled("dummy:qwen3-0.6b")) == small.LIGHT_MAX_ROWS
    assert small.max_rows(compiled("dummy:qwen3-14b")) == small.MAX_ROWS


def test_fused_ops_are_chosen_where_all_can_be(compiled) -> None:
    """Red when an 8-bit cache or deterministic mode gets ops that refuse them."""
    usual = {
        "machine": Machine(frozenset({"cuda"})), "activation": torch.bfloat16, "kv_type": torch.bfloat16,
        "page_size": 32, "deterministic": False,
    }  # fmt: skip
    step = compiled("qwen3-tiny")
    assert cuda.choose(step, **usual).keys() >= FUSED_OPS.keys()
    for other in ({"kv_type": torch.float8_e4m3fn}, {"deterministic": True}):
        assert not cuda.choose(step, **{**usual, **other}).keys() & FUSED_OPS.keys()


def test_every_pass_is_verified(compiled) -> None:
    """Red when a fused op's shape rule and its pass disagree: `mark` would raise."""
    for stage in small.fuse(compiled("qwen3-tiny")).stages:
        mark(stage, compiled("qwen3-tiny").layers)
