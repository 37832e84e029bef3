"""Bytes and FLOPs against numbers worked out by hand."""

from __future__ import annotations

import pytest

from phloem.graph.cost import Cost, StepLoad, node_cost, total_cost
from phloem.graph.ir import calls
from phloem.graph.lower.small import fuse
from phloem.graph.ops.lowered import paged_attention, rope_kv_write, select_rows
from phloem.graph.ops.model import attention, embed, linear
from phloem.graph.weights import stored_bytes
from phloem.models.catalog import define_dummy

LOAD = StepLoad(num_tokens=6, num_logits=2, num_rows=2, context=20, bytes_per_number=2)


def stored(name: str) -> int:
    return 1000


def test_linear(compiled) -> None:
    """Red if a linear is not 2 T N K operations over its weight, input and output."""
    node = next(iter(calls(compiled("llama-tiny").graph, linear)))  # q, k, v: 64 -> 64 + 2 * 32
    cost = node_cost(node, LOAD, stored)
    assert cost == Cost(weight_bytes=1000, activation_bytes=2 * 6 * (64 + 128), flops=2 * 6 * 64 * 128)


def test_lm_head_counts_logit_rows_in_float32(compiled) -> None:
    """Red if the LM head is charged for tokens whose logits nobody wants."""
    *_, node = calls(compiled("llama-tiny").graph, linear)
    cost = node_cost(node, LOAD, stored)
    assert cost == Cost(weight_bytes=1000, activation_bytes=2 * (2 * 64 + 4 * 320), flops=2 * 2 * 64 * 320)


def test_embedding_reads_rows(compiled) -> None:
    """Red if the whole table is charged."""
    node = next(iter(calls(compiled("llama-tiny").graph, embed)))
    assert node_cost(node, LOAD, lambda name: 320 * 64 * 2).weight_bytes == 6 * 64 * 2


@pytest.mark.parametrize(("model", "keys", "pairs"), [("llama-tiny", 20, 18 + 19 + 20), ("mistral-tiny", 18, 3 * 16)])
def test_paged_attention(compiled, model: str, keys: int, pairs: int) -> None:
    """Red if keys outside the causal triangle or the window of 16 are charged, or the cache is read per head."""
    node = next(iter(calls(compiled(model).graph, paged_attention)))
    cost = node_cost(node, LOAD, stored)
    assert cost.kv_bytes == 2 * keys * 2 * 2 * 16 * 2  # rows, keys, k and v, heads, head_dim, bytes
    assert cost.flops == 4 * 4 * 16 * pairs * 2
    traced = next(iter(calls(compiled(model).stages[0].graph, attention)))
    assert node_cost(traced, LOAD, stored).flops == cost.flops


def test_writing_the_cache(compiled) -> None:
    """Red if the new keys and values are not charged."""
    node = next(iter(calls(compiled("llama-tiny").graph, rope_kv_write)))
    assert node_cost(node, LOAD, stored).kv_bytes == 6 * 2 * 2 * 16 * 2


def test_a_decode_step_reads_every_weight_once(compiled) -> None:
    """Red if passes make a step read a weight twice, or not at all: the sum is the checkpoint less the embedding."""
    definition = define_dummy("qwen2.5-7b")
    step = compiled("qwen2.5-7b")
    cost = total_cost(
        step.graph, StepLoad(1, context=1), lambda name: stored_bytes(step.recipes[name], definition.checkpoint)
    )
    entries = definition.checkpoint.tensors.entries
    table = entries["model.embed_tokens.weight"].num_bytes
    weights = sum(entry.num_bytes for entry in entries.values()) - table + table // 152064
    rotary = 28 * 64 * 4
    assert cost.weight_bytes == weights + rotary
    assert cost.flops == pytest.approx(2 * weights / 2, rel=0.02)


@pytest.mark.parametrize("model", ["qwen3-tiny", "mistral-tiny"])
def test_fused_ops_move_what_their_parts_move(compiled, model: str) -> None:
    """Red if a fused op is not charged for its cache, its weights or its products."""
    load = StepLoad(num_tokens=1, context=30)
    step = compiled(model)
    parts, fused = (total_cost(each.graph, load, stored) for each in (step, fuse(step)))
    assert (fused.weight_bytes, fused.kv_bytes) == (parts.weight_bytes, parts.kv_bytes)
    assert fused.activation_bytes < parts.activation_bytes
    assert fused.flops == pytest.approx(parts.flops, rel=0.02)


def test_selected_rows_are_all_that_is_read(compiled) -> None:
    """Red if the rows that do not go on are charged."""
    node = next(iter(calls(compiled("llama-tiny").graph, select_rows)))
    assert node_cost(node, LOAD, stored).num_bytes in (2 * 2 * 64 * 2, 2 * 2 * 64 * 4)
