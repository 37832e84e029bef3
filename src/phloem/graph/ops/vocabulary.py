"""Every op there is, by name; which of them models may use, and which may be left when the passes are done."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from phloem.graph.ops import collective, experts, fp8, fused, lowered, model
from phloem.graph.ops.contract import Op


def _by_name(*ops: Op) -> Mapping[str, Op]:
    return MappingProxyType({op.name: op for op in ops})


MODEL_OPS = _by_name(
    model.embed,
    model.rms_norm,
    model.linear,
    model.heads,
    model.rope,
    model.attention,
    model.swiglu,
    experts.moe,
)
LOWERED_OPS = _by_name(
    model.embed,
    model.rms_norm,
    lowered.add_rms_norm,
    model.linear,
    lowered.rope_kv_write,
    lowered.paged_attention,
    lowered.silu_mul,
    lowered.select_rows,
)
EXPERT_OPS = _by_name(experts.moe)
"""Mixtures of experts; also left when the passes are done, and computed by torch on a CPU."""
COLLECTIVE_OPS = _by_name(
    collective.all_reduce,
    collective.all_gather,
    collective.local_ids,
    collective.owned_rows,
    collective.receive,
    collective.send,
    experts.moe_exchange,
)  # bound to a Comm when a graph is lowered, whatever the machine
QUANTIZED_OPS = _by_name(fp8.linear_fp8)
"""What passes make of linears whose weights are stored in fewer bits; also left when the passes are done."""
FUSED_OPS = _by_name(fused.norm_linear, fused.norm_gated_linear, fused.linear_add, fused.rope_attention)
"""What a device may make of a lowered graph for small steps (graph/lower/small.py)."""
OPS: Mapping[str, Op] = MappingProxyType(
    {
        **MODEL_OPS,
        **LOWERED_OPS,
        **EXPERT_OPS,
        **COLLECTIVE_OPS,
        **QUANTIZED_OPS,
        **FUSED_OPS,
        "columns": model.columns,
    }
)
