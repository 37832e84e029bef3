"""Each pass: what it counts before and after, what it leaves alone, that it is pure and finds nothing a second time."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from phloem.graph.compile import PASSES, mark
from phloem.graph.ir import GraphError, Stage, calls, placeholders, spec_of
from phloem.graph.ops.lowered import add_rms_norm, rope_kv_write, select_rows
from phloem.graph.ops.model import attention, embed, heads, linear, rms_norm, rope, swiglu
from phloem.graph.passes.fuse_activation import fuse_activation
from phloem.graph.passes.fuse_rope_kv_write import fuse_rope_kv_write
from phloem.graph.passes.merge_linears import merge_linears
from phloem.graph.trace import trace
from phloem.graph.verify import verify
from phloem.graph.weights import Concat, Stored
from phloem.memory.spec import FullAttention

LAYERS = 30  # of the model that is counted here
MODEL = "smollm2-135m"
FAMILIES = ("llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny")


def neighbours(compiled, model: str) -> Iterator[tuple[Stage, Stage]]:
    stages = compiled(model).stages
    return zip(stages, stages[1:], strict=False)


def test_the_order_of_the_passes() -> None:
    """Red if a pass is added, dropped or moved without this list being thought about."""
    names = [rewrite.__name__ for rewrite in PASSES]
    assert names == [
        "merge_linears",
        "fuse_residual_norm",
        "fuse_activation",
        "fuse_rope_kv_write",
        "select_last_rows",
    ]


def test_merge_linears_counts(stage_of, count) -> None:
    """Red if q, k and v or gate and up are not merged: 7 linears a layer become 4, and the LM head stays."""
    before, after = (count(stage_of(MODEL, name)) for name in ("trace", "merge_linears"))
    assert (before["linear"], after["linear"]) == (7 * LAYERS + 1, 4 * LAYERS + 1)
    assert after["columns"] == 5 * LAYERS


def test_merge_linears_rewrites_the_recipes(stage_of) -> None:
    """Red if the merged weight is not q, k, v in that order, or its parts keep recipes of their own."""
    before, after = (stage_of("qwen2-tiny", name).recipes for name in ("trace", "merge_linears"))
    for kind in ("weight", "bias"):
        merged = after[f"layers.0.attention.q_k_v.{kind}"]
        assert isinstance(merged, Concat)
        assert merged.parts == tuple(before[f"layers.0.attention.{x}.{kind}"] for x in "qkv")
    assert after["layers.1.mlp.gate_up.weight"].shape == (256, 64)
    assert not [name for name in after if name.endswith((".q.weight", ".gate.weight"))]
    assert "layers.0.attention.q.weight" in before


def test_fuse_residual_norm_counts(stage_of, count) -> None:
    """Red if a sum before a norm is left, or the first norm, which has none, is touched."""
    before, after = (count(stage_of(MODEL, name)) for name in ("merge_linears", "fuse_residual_norm"))
    assert (before["add"], before["rms_norm"]) == (2 * LAYERS, 2 * LAYERS + 1)
    assert (after["add"], after["rms_norm"], after["add_rms_norm"]) == (0, 1, 2 * LAYERS)


def test_fuse_residual_norm_keeps_the_residual_in_float32(stage_of) -> None:
    """Red if x and residual are swapped: the residual is the float32 one."""
    for node in calls(stage_of(MODEL, "fuse_residual_norm").graph, add_rms_norm):
        assert [spec_of(arg).dtype for arg in node.args[:2]] == ["act", "float32"]


def test_fuse_activation_counts(stage_of, count) -> None:
    """Red if a swiglu over one merged projection is left."""
    before, after = (count(stage_of(MODEL, name)) for name in ("fuse_residual_norm", "fuse_activation"))
    assert (before["swiglu"], after["swiglu"], after["silu_mul"]) == (LAYERS, 0, LAYERS)
    assert after["columns"] == 3 * LAYERS


def test_fuse_activation_leaves_swapped_halves_alone(stage_of, count) -> None:
    """Red if up * silu(gate) with the halves the other way round becomes silu_mul: other numbers."""
    before = stage_of("llama-tiny", "fuse_residual_norm")
    swapped = Stage(before.name, type(before.graph)(), before.recipes)
    swapped.graph.output(swapped.graph.graph_copy(before.graph, {}))
    for node in calls(swapped.graph, swiglu):
        node.args = node.args[::-1]
    assert count(fuse_activation(swapped))["silu_mul"] == 0


def test_fuse_rope_kv_write_counts(stage_of, count) -> None:
    """Red if a part of attention is left at model level, or a layer has no cache of its own."""
    after = stage_of(MODEL, "fuse_rope_kv_write")
    counted = count(after)
    assert (counted["rope_kv_write"], counted["paged_attention"]) == (LAYERS, LAYERS)
    assert not {"rope", "heads", "columns", "attention"} & set(counted)
    caches = [node.target for node in placeholders(after.graph) if node.target.startswith("kv_cache_")]
    assert caches == [f"kv_cache_{layer}" for layer in range(LAYERS)]


def test_fuse_rope_kv_write_takes_the_head_norms_along(stage_of) -> None:
    """Red if Qwen3's norms of q and k are lost, swapped, or given to a family without them."""
    for model, expected in (("qwen3-tiny", ["q_norm", "k_norm"]), ("qwen2-tiny", [None, None])):
        (first, *_) = calls(stage_of(model, "fuse_rope_kv_write").graph, rope_kv_write)
        assert [norm and norm.target.split(".")[-2] for norm in first.args[1:3]] == expected


def test_select_last_rows_thins_everything_behind_the_last_attention(stage_of, count) -> None:
    """Red if any value behind the last attention still has a row for every token, or one before has not."""
    after = stage_of(MODEL, "select_last_rows")
    assert count(after)["select_rows"] == 2
    nodes = list(after.graph.nodes)
    first = min(nodes.index(node) for node in calls(after.graph, select_rows))
    for position, node in enumerate(nodes):
        spec = node.meta.get("spec")
        if node.op == "call_function":
            rows = {s.shape[0] for s in (spec if isinstance(spec, tuple) else (spec,))}
            assert rows == ({"L"} if position >= first else {"T"}), node.name


@pytest.mark.parametrize("model", FAMILIES)
def test_passes_are_pure(compiled, listing, model: str) -> None:
    """Red if a pass edits the stage it is given."""
    for rewrite, (before, _) in zip(PASSES, neighbours(compiled, model), strict=True):
        said = listing(before)
        rewrite(before)
        assert listing(before) == said


@pytest.mark.parametrize("model", FAMILIES)
def test_passes_are_idempotent(compiled, count, model: str) -> None:
    """Red if a pass applied to its own result changes it. (select_last_rows declares an input, so it runs once.)"""
    for rewrite, (_, after) in zip(PASSES[:-2], neighbours(compiled, model), strict=False):
        again = rewrite(after)
        assert count(again) == count(after)
        assert set(again.recipes) == set(after.recipes)


@pytest.mark.parametrize("model", FAMILIES)
def test_passes_are_deterministic(compiled, listing, model: str) -> None:
    """Red if the order of a set or of ids decides anything."""
    for rewrite, (before, after) in zip(PASSES, neighbours(compiled, model), strict=True):
        once, again = rewrite(before), rewrite(before)
        assert listing(once) == listing(again)
        assert [n.name for n in once.graph.nodes] == [n.name for n in after.graph.nodes]


class Strange(nn.Module):
    """Attention whose k is rotated twice: no family does that, and no kernel can."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        for name, shape in {"e": (9, 8), "n": (8,), "q": (8, 8), "k": (8, 8), "v": (8, 8), "inv_freq": (2,)}.items():
            self.register_buffer(name, torch.empty(shape, device="meta"))

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = rms_norm(embed(token_ids, self.e), self.n, 1e-5)
        q, k, v = (heads(linear(x, w), 4) for w in (self.q, self.k, self.v))
        q, k = (rope(y, positions, self.inv_freq) for y in (q, k))
        k = rope(k, positions, self.inv_freq) if self.twice else k
        return linear(attention(q, k, v, 0.5), self.e, None, True)


@pytest.mark.parametrize("twice", [False, True])
def test_what_cannot_be_fused_is_an_error_that_names_pass_and_node(twice: bool) -> None:
    """Red if fuse_rope_kv_write drops a part of an attention that it does not understand."""
    module = Strange(twice)
    recipes = {f"{name}": Stored(name, tuple(value.shape)) for name, value in module.named_buffers()}
    layers = (FullAttention(num_kv_heads=2, head_dim=4),)
    merged = mark(merge_linears(mark(trace(module, recipes), layers)), layers)
    if twice:
        with pytest.raises(GraphError, match=r"fuse_rope_kv_write: .*attention"):
            fuse_rope_kv_write(merged)
    else:
        assert list(calls(fuse_rope_kv_write(merged).graph, rope_kv_write))


def test_linears_that_do_not_share_an_input_stay_apart(stage_of) -> None:
    """Red if o and down, or the linears of two layers, are merged."""
    names = list(stage_of("llama-tiny", "merge_linears").recipes)
    assert [name for name in names if name.startswith("layers.0.") and "norm" not in name] == [
        "layers.0.attention.o.weight",
        "layers.0.mlp.down.weight",
        "layers.0.attention.q_k_v.weight",
        "layers.0.mlp.gate_up.weight",
    ]


def test_getitem_is_all_that_is_left_besides_lowered_ops(compiled) -> None:
    """Red if the final graph calls anything the tape does not know."""
    final = compiled("qwen3-tiny")
    others = {n.target for n in final.graph.nodes if n.op == "call_function" and not hasattr(n.target, "tolerance")}
    assert others == {operator.getitem}
    verify(final.stages[-1], final.layers, lowered=True)
