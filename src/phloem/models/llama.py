"""Llama: Touvron et al. 2023, "LLaMA"; Grattafiori et al. 2024, "The Llama 3 Herd of Models". SmolLM2 is one too."""

from __future__ import annotations

from torch import Tensor, nn

from phloem.graph.ops.model import attention, heads, rope
from phloem.models.blocks import DECODER_LAYOUT, DECODER_NAMES, Decoder, Linear, bias_names
from phloem.models.definition import Dims, Family

NAMES = DECODER_NAMES | bias_names(
    "attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down"
)  # the biases only where the configuration asks for them


class LlamaAttention(nn.Module):
    """Grouped queries, rotary positions; o(softmax(q k^T / sqrt(d)) v). Biases and windows as configured."""

    def __init__(self, dims: Dims, layer: int) -> None:
        super().__init__()
        self.head_dim, self.scale, self.window = dims.head_dim, dims.scale, dims.windows[layer]
        bias = dims.attention_bias
        self.q = Linear(dims.hidden, dims.num_heads * dims.head_dim, bias=bias)
        self.k = Linear(dims.hidden, dims.num_kv_heads * dims.head_dim, bias=bias)
        self.v = Linear(dims.hidden, dims.num_kv_heads * dims.head_dim, bias=bias)
        self.o = Linear(dims.num_heads * dims.head_dim, dims.hidden, bias=bias)

    def forward(self, x_TD: Tensor, positions_T: Tensor, inv_freq: Tensor) -> Tensor:
        q_THd = rope(heads(self.q(x_TD), self.head_dim), positions_T, inv_freq)
        k_TKd = rope(heads(self.k(x_TD), self.head_dim), positions_T, inv_freq)
        v_TKd = heads(self.v(x_TD), self.head_dim)
        out: Tensor = self.o(attention(q_THd, k_TKd, v_TKd, self.scale, self.window))
        return out


class Llama(Decoder):
    def __init__(self, dims: Dims) -> None:
        super().__init__(dims, LlamaAttention)


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    architectures=("llama",),
    model=Llama,
    names=NAMES,
    layout=DECODER_LAYOUT,
    gguf_interleaves=True,
)
