"""Mixtral: Jiang et al. 2024, "Mixtral of Experts". Mistral's attention; every MLP is two of eight experts."""

from __future__ import annotations

from phloem.models.blocks import DECODER_NAMES, MOE_LAYOUT, Decoder, MoeMlp, moe_names
from phloem.models.definition import Dims, Family
from phloem.models.mistral import MistralAttention


class Mixtral(Decoder):
    def __init__(self, dims: Dims) -> None:
        super().__init__(dims, MistralAttention, MoeMlp)


FAMILY = Family(
    name="mixtral",
    model_types=("mixtral",),
    architectures=(),
    model=Mixtral,
    names=DECODER_NAMES | moe_names("block_sparse_moe", gate="w1", up="w3", down="w2"),
    layout=MOE_LAYOUT,
)
