"""Step costs of machines that are not here: from a model's shape and a card's rates. docs/cluster.md says which rates
were measured (docs/gpu.md) and which are assumed."""

from __future__ import annotations

import msgspec

from phloem.runtime.sim.cost import StepCost

BYTES_PER_NUMBER = 2


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Of a dense transformer in bfloat16. `num_parameters` are those read in a step: without the input embedding."""

    num_parameters: float
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of every layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * BYTES_PER_NUMBER

    @property
    def activation_bytes_per_token(self) -> int:
        """What an all-reduce of one token adds up."""
        return self.hidden * BYTES_PER_NUMBER


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """Rates that a step reaches. `collective_s` is the latency of an all-reduce, `link_bytes_per_s`
    what each card sends in one, `stage_bytes_per_s` between stages."""

    memory_bytes: float
    weight_bytes_per_s: float
    kv_bytes_per_s: float
    flops_per_s: float
    attention_flops_per_s: float
    fixed_s: float
    row_s: float
    collective_s: float
    link_bytes_per_s: float
    stage_bytes_per_s: float


MODELS = {
    "qwen3-14b": ModelShape(
        num_parameters=14.0e9, num_layers=40, hidden=5120, num_heads=40, num_kv_heads=8, head_dim=128
    ),
    "qwen3-32b": ModelShape(
        num_parameters=32.0e9, num_layers=64, hidden=5120, num_heads=64, num_kv_heads=8, head_dim=128
    ),
}
CARDS = {
    "h200": Card(
        memory_bytes=141e9,
        weight_bytes_per_s=4.6e12,  # derived: the floor of docs/gpu.md's single stream
        kv_bytes_per_s=4.0e12,  # measured: decode attention at 256 rows
        flops_per_s=650e12,  # derived: a measured prompt of 8,192, 14B, less its attention
        attention_flops_per_s=440e12,  # measured: prompt attention at 4k to 8k
        fixed_s=1.8e-3,  # derived: an earlier single stream of 8.23 ms less its floor, 14B
        row_s=10e-6,  # assumed: sampling and small ops of a row
        collective_s=12e-6,  # assumed
        link_bytes_per_s=350e9,  # assumed: NVLink 4, 450 GB/s a direction at most
        stage_bytes_per_s=40e9,  # assumed: one 400 Gbit/s port a card
    ),
}
MEMORY_MARGIN = 0.1
"""Of a card's memory: activations, graphs and fragments."""


def stage_cost(model: ModelShape, card: Card, *, tp: int, pp: int) -> StepCost:
    """One stage of a replica. A stage holds 1 / (tp x pp) of the weights; two all-reduces a layer along tp, one send to
    the next stage along pp."""
    share = 1 / (tp * pp)
    layers = model.num_layers / pp
    ring = 2 * (tp - 1) / tp  # an all-reduce moves every byte so often over a card's link
    reduced_s = 2 * layers * ring * model.activation_bytes_per_token / card.link_bytes_per_s
    # x in bfloat16 and the residual in float32 go to the next stage
    sent_s = 3 * model.activation_bytes_per_token / card.stage_bytes_per_s if pp > 1 else 0.0
    attention_flops = 4 * model.num_layers * model.num_heads * model.head_dim
    return StepCost(
        fixed_s=card.fixed_s / pp + (2 * layers * card.collective_s if tp > 1 else 0.0),
        weights_s=model.num_parameters * BYTES_PER_NUMBER * share / card.weight_bytes_per_s,
        token_s=2 * model.num_parameters * share / card.flops_per_s + reduced_s + sent_s,
        row_s=card.row_s / pp,
        context_s=model.kv_bytes_per_token * share / card.kv_bytes_per_s,
        attended_s=attention_flops * share / card.attention_flops_per_s,
    )


def num_kv_tokens(model: ModelShape, card: Card, *, tp: int, pp: int) -> int:
    """How many tokens of cache a replica holds; not positive where the weights do not fit."""
    room = tp * pp * card.memory_bytes * (1 - MEMORY_MARGIN) - model.num_parameters * BYTES_PER_NUMBER
    return int(room / model.kv_bytes_per_token)
