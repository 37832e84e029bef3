"""Every op there is, by name; which of them models may use, and which may be left when the passes are done."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from phloem.graph.ops import collective, experts, lowered, model
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
    experts.moe,
)
COLLECTIVE_OPS = _by_name(
    collective.all_reduce,
    collective.all_gather,
    collective.local_ids,
    collective.owned_rows,
    collective.receive,
    collective.send,
    experts.moe_exchange,
)  # bound to a Comm when a graph is lowered, whatever the machine
OPS: Mapping[str, Op] = MappingProxyType({**MODEL_OPS, **LOWERED_OPS, **COLLECTIVE_OPS, "columns": model.columns})
