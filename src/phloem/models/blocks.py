"""What every decoder here is made of: modules that hold parameters and call one op each, and the stack around them.

Shape suffixes in this package: T tokens, D hidden, F feed-forward, N outputs and K inputs of a linear, V vocabulary,
H query heads, K KV heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from phloem.graph.ops.experts import moe
from phloem.graph.ops.model import embed, linear, rms_norm, swiglu
from phloem.models.definition import Dims
from phloem.parallel.layout import Cut, Layout

Names = dict[str, tuple[str, str]]

DECODER_NAMES: Names = {
    # parameter: (Hugging Face, GGUF)
    "embed.weight": ("model.embed_tokens.weight", "token_embd.weight"),
    "norm.weight": ("model.norm.weight", "output_norm.weight"),
    "lm_head.weight": ("lm_head.weight", "output.weight"),
    "layers.{}.attention_norm.weight": ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    "layers.{}.attention.q.weight": ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    "layers.{}.attention.k.weight": ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    "layers.{}.attention.v.weight": ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    "layers.{}.attention.o.weight": ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    "layers.{}.mlp_norm.weight": ("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    "layers.{}.mlp.gate.weight": ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    "layers.{}.mlp.up.weight": ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    "layers.{}.mlp.down.weight": ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
}


DECODER_LAYOUT: Layout = {
    "embed.weight": Cut("rows", "vocab"),
    "lm_head.weight": Cut("rows", "vocab"),
    "layers.{}.attention.q.weight": Cut("rows", "heads"),
    "layers.{}.attention.k.weight": Cut("rows", "kv_heads"),
    "layers.{}.attention.v.weight": Cut("rows", "kv_heads"),
    "layers.{}.attention.o.weight": Cut("columns", "heads"),
    "layers.{}.attention.q.bias": Cut("rows", "heads"),
    "layers.{}.attention.k.bias": Cut("rows", "kv_heads"),
    "layers.{}.attention.v.bias": Cut("rows", "kv_heads"),
    "layers.{}.mlp.gate.weight": Cut("rows", "ffn"),
    "layers.{}.mlp.up.weight": Cut("rows", "ffn"),
    "layers.{}.mlp.down.weight": Cut("columns", "ffn"),
    "layers.{}.mlp.gate.bias": Cut("rows", "ffn"),
    "layers.{}.mlp.up.bias": Cut("rows", "ffn"),
}


MOE_LAYOUT: Layout = {
    **DECODER_LAYOUT,
    "layers.{}.mlp.experts.gate_up": Cut("rows", "expert_ffn"),
    "layers.{}.mlp.experts.down": Cut("columns", "expert_ffn"),
}


def bias_names(*linears: str) -> Names:
    """The biases of linears named in DECODER_NAMES, such as "attention.q"."""
    weights = {f"layers.{{}}.{linear}": DECODER_NAMES[f"layers.{{}}.{linear}.weight"] for linear in linears}
    return {
        f"{name}.bias": (hf.replace(".weight", ".bias"), gguf.replace(".weight", ".bias"))
        for name, (hf, gguf) in weights.items()
    }


def moe_names(block: str, *, gate: str, up: str, down: str) -> Names:
    """The router and the experts of a mixture. `{expert}` stands for each in turn, `|` joins the parts of one."""
    expert = f"model.layers.{{}}.{block}.experts.{{expert}}"
    return {
        "layers.{}.mlp.router.weight": (f"model.layers.{{}}.{block}.gate.weight", ""),
        "layers.{}.mlp.experts.gate_up": (f"{expert}.{gate}.weight|{expert}.{up}.weight", ""),
        "layers.{}.mlp.experts.down": (f"{expert}.{down}.weight", ""),
    }


def parameter(*shape: int) -> nn.Parameter:
    """A shape to be filled by a recipe: models live on the meta device and never hold numbers."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class Embedding(nn.Module):
    def __init__(self, vocab: int, hidden: int) -> None:
        super().__init__()
        self.weight = parameter(vocab, hidden)

    def forward(self, token_ids_T: Tensor) -> Tensor:
        out: Tensor = embed(token_ids_T, self.weight)
        return out


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = rms_norm(x, self.weight, self.eps)
        return out


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, bias: bool = False, float32_out: bool = False) -> None:
        super().__init__()
        self.weight = parameter(outputs, inputs)
        self.bias = parameter(outputs) if bias else None
        self.float32_out = float32_out

    def forward(self, x_TK: Tensor) -> Tensor:
        out: Tensor = linear(x_TK, self.weight, self.bias, self.float32_out)
        return out


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.gate = Linear(dims.hidden, dims.ffn, bias=dims.mlp_bias)
        self.up = Linear(dims.hidden, dims.ffn, bias=dims.mlp_bias)
        self.down = Linear(dims.ffn, dims.hidden, bias=dims.mlp_bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        a_TF = swiglu(self.gate(x_TD), self.up(x_TD))
        out: Tensor = self.down(a_TF)
        return out


class Experts(nn.Module):
    """The weights of all experts, one below the other."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.gate_up = parameter(dims.num_experts * 2 * dims.expert_ffn, dims.hidden)
        self.down = parameter(dims.num_experts * dims.hidden, dims.expert_ffn)


class MoeMlp(nn.Module):
    """A router, and of many gated MLPs the few it chooses for each token."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.router = Linear(dims.hidden, dims.num_experts, float32_out=True)
        self.experts = Experts(dims)
        self.top_k, self.normalize = dims.experts_per_token, dims.normalizes_experts

    def forward(self, x_TD: Tensor) -> Tensor:
        router_TE = self.router(x_TD)
        out: Tensor = moe(x_TD, router_TE, self.experts.gate_up, self.experts.down, self.top_k, self.normalize)
        return out


class Layer(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h))"""

    def __init__(self, dims: Dims, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(dims.hidden, dims.eps)
        self.attention = attention
        self.mlp_norm = RmsNorm(dims.hidden, dims.eps)
        self.mlp = mlp

    def forward(self, h_TD: Tensor, positions_T: Tensor, inv_freq: Tensor) -> Tensor:
        a_TD: Tensor = self.attention(self.attention_norm(h_TD), positions_T, inv_freq)
        h_TD = h_TD + a_TD
        m_TD: Tensor = self.mlp(self.mlp_norm(h_TD))
        return h_TD + m_TD


class Decoder(nn.Module):
    """Embedding, layers, norm, LM head. `attention(dims, layer)` and `mlp(dims)` make the family's own."""

    inv_freq: Tensor

    def __init__(
        self,
        dims: Dims,
        attention: Callable[[Dims, int], nn.Module],
        mlp: Callable[[Dims], nn.Module] = GatedMlp,
    ) -> None:
        super().__init__()
        self.embed = Embedding(dims.vocab, dims.hidden)
        self.layers = nn.ModuleList(Layer(dims, attention(dims, i), mlp(dims)) for i in range(dims.num_layers))
        self.norm = RmsNorm(dims.hidden, dims.eps)
        self.lm_head = Linear(dims.hidden, dims.vocab, float32_out=True)
        if dims.tied:
            self.lm_head.weight = self.embed.weight
        self.register_buffer("inv_freq", torch.empty(dims.head_dim // 2, device="meta"))

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        h_TD = self.embed(token_ids)
        for layer in self.layers:
            h_TD = layer(h_TD, positions, self.inv_freq)
        logits_TV: Tensor = self.lm_head(self.norm(h_TD))
        return logits_TV
