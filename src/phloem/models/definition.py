"""What a checkpoint turns out to be: the numbers of a model, and everything the engine needs to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.graph.weights import WeightRecipe
from phloem.memory.spec import FullAttention
from phloem.parallel.layout import Layout, Sizes


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies with their scaling applied, float32 [head_dim / 2].

    `attention_factor` multiplies queries and keys after the rotation (YaRN); it is folded into the softmax scale.
    """

    inv_freq: npt.NDArray[np.float32]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class Dims:
    """The numbers of a decoder. `windows` has one entry a layer: tokens a query sees back, itself included, or None."""

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    eps: float
    max_context: int
    windows: tuple[int | None, ...]
    rope: Rope
    tied: bool = False  # the LM head is the embedding
    attention_bias: bool = False  # q, k, v and o, where the family leaves it to the configuration
    mlp_bias: bool = False
    num_experts: int = 0  # 0: a dense model
    experts_per_token: int = 0
    expert_ffn: int = 0
    normalizes_experts: bool = True  # the weights of a token's experts sum to one

    @property
    def scale(self) -> float:
        """What q k^T is multiplied by."""
        return float(self.rope.attention_factor**2 / self.head_dim**0.5)


@dataclass(frozen=True)
class Family:
    """One file of this package, as the catalog sees it.

    `names` maps parameter names to checkpoint names (Hugging Face, GGUF); `{}` stands for the layer.
    `gguf_interleaves`: llama.cpp's converter reorders this family's rows of q and k for rotation of neighbouring pairs.
    """

    name: str
    model_types: tuple[str, ...]  # in config.json
    architectures: tuple[str, ...]  # general.architecture in GGUF
    model: Callable[[Dims], nn.Module]
    names: Mapping[str, tuple[str, str]]
    layout: Layout = field(default_factory=dict)  # how parameters are cut along the tensor axis
    gguf_interleaves: bool = False


@dataclass(frozen=True)
class ModelDefinition:
    """A model ready to be compiled by `graph.compile.compile_graph` and loaded by `graph.weights.load_raw`."""

    family: Family
    dims: Dims
    checkpoint: Checkpoint
    recipes: Mapping[str, WeightRecipe]
    bos_id: int | None
    eos_ids: tuple[int, ...]  # any of these ends a sequence

    @property
    def layers(self) -> tuple[FullAttention, ...]:
        """What each layer keeps between steps."""
        dims = self.dims
        return tuple(FullAttention(dims.num_kv_heads, dims.head_dim, window) for window in dims.windows)

    @property
    def layout(self) -> Layout:
        """How the family's parameters are cut along the tensor axis."""
        return self.family.layout

    @property
    def sizes(self) -> Sizes:
        """The numbers that such cuts go by."""
        dims = self.dims
        return Sizes(
            num_heads=dims.num_heads,
            num_kv_heads=dims.num_kv_heads,
            head_dim=dims.head_dim,
            ffn=dims.ffn,
            vocab=dims.vocab,
            num_experts=dims.num_experts,
            expert_ffn=dims.expert_ffn,
        )

    @property
    def vocab_size(self) -> int:
        return self.dims.vocab

    @property
    def max_context(self) -> int:
        """Tokens, prompt and answer together, that the model was made for."""
        return self.dims.max_context

    def build(self) -> nn.Module:
        """The module on the meta device: shapes and equations, no numbers."""
        return self.family.model(self.dims)

    def summary(self) -> dict[str, Any]:
        """For display: family and sizes."""
        dims = self.dims
        return {
            "family": self.family.name,
            "layers": dims.num_layers,
            "hidden": dims.hidden,
            "heads": f"{dims.num_heads} ({dims.num_kv_heads} KV) of {dims.head_dim}",
            "ffn": dims.ffn
            if not dims.num_experts
            else f"{dims.expert_ffn} x {dims.experts_per_token} of {dims.num_experts} experts",
            "vocabulary": dims.vocab,
            "context": dims.max_context,
        }
