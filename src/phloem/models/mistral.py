"""Mistral: Jiang et al. 2023, "Mistral 7B". Llama whose queries see a sliding window of keys."""

from __future__ import annotations

from torch import Tensor, nn

from phloem.graph.ops.model import attention, heads, rope
from phloem.models.blocks import DECODER_LAYOUT, DECODER_NAMES, Decoder, Linear
from phloem.models.definition import Dims, Family


class MistralAttention(nn.Module):
    """Grouped queries, rotary positions; a query at position p sees the keys at p - window + 1 .. p."""

    def __init__(self, dims: Dims, layer: int) -> None:
        super().__init__()
        self.head_dim, self.scale, self.window = dims.head_dim, dims.scale, dims.windows[layer]
        self.q = Linear(dims.hidden, dims.num_heads * dims.head_dim)
        self.k = Linear(dims.hidden, dims.num_kv_heads * dims.head_dim)
        self.v = Linear(dims.hidden, dims.num_kv_heads * dims.head_dim)
        self.o = Linear(dims.num_heads * dims.head_dim, dims.hidden)

    def forward(self, x_TD: Tensor, positions_T: Tensor, inv_freq: Tensor) -> Tensor:
        q_THd = rope(heads(self.q(x_TD), self.head_dim), positions_T, inv_freq)
        k_TKd = rope(heads(self.k(x_TD), self.head_dim), positions_T, inv_freq)
        v_TKd = heads(self.v(x_TD), self.head_dim)
        out: Tensor = self.o(attention(q_THd, k_TKd, v_TKd, self.scale, self.window))
        return out


class Mistral(Decoder):
    def __init__(self, dims: Dims) -> None:
        super().__init__(dims, MistralAttention)


FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    architectures=("mistral",),
    model=Mistral,
    names=DECODER_NAMES,
    layout=DECODER_LAYOUT,
    gguf_interleaves=True,
)
