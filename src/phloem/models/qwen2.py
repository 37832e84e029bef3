"""Qwen2 and Qwen2.5: Yang et al. 2024, "Qwen2 Technical Report". Llama with biased q, k and v."""

from __future__ import annotations

from torch import Tensor, nn

from phloem.graph.ops.model import attention, heads, rope
from phloem.models.blocks import DECODER_LAYOUT, DECODER_NAMES, Decoder, Linear, bias_names
from phloem.models.definition import Dims, Family

NAMES = DECODER_NAMES | bias_names("attention.q", "attention.k", "attention.v")


class Qwen2Attention(nn.Module):
    """Grouped queries, rotary positions; q, k and v have biases, o has none. Some layers may have a window."""

    def __init__(self, dims: Dims, layer: int) -> None:
        super().__init__()
        self.head_dim, self.scale, self.window = dims.head_dim, dims.scale, dims.windows[layer]
        self.q = Linear(dims.hidden, dims.num_heads * dims.head_dim, bias=True)
        self.k = Linear(dims.hidden, dims.num_kv_heads * dims.head_dim, bias=True)
        self.v = Linear(dims.hidden, dims.num_kv_heads * dims.head_dim, bias=True)
        self.o = Linear(dims.num_heads * dims.head_dim, dims.hidden)

    def forward(self, x_TD: Tensor, positions_T: Tensor, inv_freq: Tensor) -> Tensor:
        q_THd = rope(heads(self.q(x_TD), self.head_dim), positions_T, inv_freq)
        k_TKd = rope(heads(self.k(x_TD), self.head_dim), positions_T, inv_freq)
        v_TKd = heads(self.v(x_TD), self.head_dim)
        out: Tensor = self.o(attention(q_THd, k_TKd, v_TKd, self.scale, self.window))
        return out


class Qwen2(Decoder):
    def __init__(self, dims: Dims) -> None:
        super().__init__(dims, Qwen2Attention)


FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    architectures=("qwen2",),
    model=Qwen2,
    names=NAMES,
    layout=DECODER_LAYOUT,
)
