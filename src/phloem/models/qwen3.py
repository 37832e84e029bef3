"""Qwen3 (dense): Yang et al. 2025, "Qwen3 Technical Report". No biases; every head of q and k is normalized."""

from __future__ import annotations

from torch import Tensor, nn

from phloem.graph.ops.model import attention, heads, rope
from phloem.models.blocks import DECODER_LAYOUT, DECODER_NAMES, Decoder, Linear, RmsNorm, bias_names
from phloem.models.definition import Dims, Family

NAMES = (
    DECODER_NAMES
    | bias_names("attention.q", "attention.k", "attention.v", "attention.o")  # only where the configuration asks
    | {
        "layers.{}.attention.q_norm.weight": ("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"),
        "layers.{}.attention.k_norm.weight": ("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"),
    }
)


class Qwen3Attention(nn.Module):
    """Grouped queries; RMS norm over each head of q and k before the rotation. head_dim is not hidden / heads."""

    def __init__(self, dims: Dims, layer: int) -> None:
        super().__init__()
        self.head_dim, self.scale, self.window = dims.head_dim, dims.scale, dims.windows[layer]
        bias = dims.attention_bias
        self.q = Linear(dims.hidden, dims.num_heads * dims.head_dim, bias=bias)
        self.k = Linear(dims.hidden, dims.num_kv_heads * dims.head_dim, bias=bias)
        self.v = Linear(dims.hidden, dims.num_kv_heads * dims.head_dim, bias=bias)
        self.o = Linear(dims.num_heads * dims.head_dim, dims.hidden, bias=bias)
        self.q_norm = RmsNorm(dims.head_dim, dims.eps)
        self.k_norm = RmsNorm(dims.head_dim, dims.eps)

    def forward(self, x_TD: Tensor, positions_T: Tensor, inv_freq: Tensor) -> Tensor:
        q_THd = rope(self.q_norm(heads(self.q(x_TD), self.head_dim)), positions_T, inv_freq)
        k_TKd = rope(self.k_norm(heads(self.k(x_TD), self.head_dim)), positions_T, inv_freq)
        v_TKd = heads(self.v(x_TD), self.head_dim)
        out: Tensor = self.o(attention(q_THd, k_TKd, v_TKd, self.scale, self.window))
        return out


class Qwen3(Decoder):
    def __init__(self, dims: Dims) -> None:
        super().__init__(dims, Qwen3Attention)


FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    architectures=("qwen3",),
    model=Qwen3,
    names=NAMES,
    layout=DECODER_LAYOUT,
)
