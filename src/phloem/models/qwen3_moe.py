"""Qwen3-MoE: Yang et al. 2025, "Qwen3 Technical Report". Qwen3's attention; every MLP is a choice of experts."""

from __future__ import annotations

from phloem.models.blocks import MOE_LAYOUT, Decoder, MoeMlp, moe_names
from phloem.models.definition import Dims, Family
from phloem.models.qwen3 import NAMES, Qwen3Attention


class Qwen3Moe(Decoder):
    def __init__(self, dims: Dims) -> None:
        super().__init__(dims, Qwen3Attention, MoeMlp)


FAMILY = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    architectures=(),
    model=Qwen3Moe,
    names=NAMES | moe_names("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    layout=MOE_LAYOUT,
)
