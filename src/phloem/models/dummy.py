"""Named models with random weights in their exact shapes, for benchmarks and tests where no checkpoint can be had.

`dummy:<name>` behaves as a Hugging Face folder of bfloat16 weights would; nothing is stored,
tensors are made when read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phloem.core.errors import ModelError
from phloem.graph.checkpoint.checkpoint import Checkpoint, Entry, LazyTensors
from phloem.kernels.spec import RawWeight

POOL = 1_048_573  # random numbers that all tensors are cut from; prime, so that rows do not repeat in step
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def dummy_checkpoint(name: str) -> Checkpoint:
    """The named model with weights that depend on nothing but their names. ModelError lists the names there are."""
    config = CONFIGS.get(name)
    if config is None:
        raise ModelError(f"dummy:{name}: no such model; there are {', '.join(CONFIGS)}", field="model")
    return Checkpoint(path=Path(f"dummy:{name}"), kind="hf", config=config, tensors=LazyTensors(dict(_entries(config))))


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    """Every tensor a folder of this configuration would have."""
    for name, shape in _shapes(config):
        yield name, Entry("BF16", 2 * prod(shape), partial(_random, name, shape), partial(_pattern, name, shape))


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    D, V = config["hidden_size"], config["vocab_size"]
    d = config.get("head_dim", D // config["num_attention_heads"])
    Q, K = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    yield "model.embed_tokens.weight", (V, D)
    yield "model.norm.weight", (D,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (V, D)
    projections = {"q": (Q, D), "k": (K, D), "v": (K, D), "o": (D, Q)}
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        for kind, shape in projections.items():
            yield f"{start}.self_attn.{kind}_proj.weight", shape
            if config["model_type"] == "qwen2" and kind != "o":
                yield f"{start}.self_attn.{kind}_proj.bias", shape[:1]
            if config["model_type"] in ("qwen3", "qwen3_moe") and kind in "qk":
                yield f"{start}.self_attn.{kind}_norm.weight", (d,)
        yield from _mlp(config, start)
        yield f"{start}.input_layernorm.weight", (D,)
        yield f"{start}.post_attention_layernorm.weight", (D,)


def _mlp(config: Mapping[str, Any], start: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """One layer's MLP, or its router and experts."""
    D, F = config["hidden_size"], config["intermediate_size"]
    if config["model_type"] == "mixtral":
        block, names = f"{start}.block_sparse_moe", ("w1", "w3", "w2")
        num_experts = config["num_local_experts"]
    elif config["model_type"] == "qwen3_moe":
        block, names = f"{start}.mlp", ("gate_proj", "up_proj", "down_proj")
        num_experts, F = config["num_experts"], config["moe_intermediate_size"]
    else:
        yield f"{start}.mlp.gate_proj.weight", (F, D)
        yield f"{start}.mlp.up_proj.weight", (F, D)
        yield f"{start}.mlp.down_proj.weight", (D, F)
        return
    yield f"{block}.gate.weight", (num_experts, D)
    for expert in range(num_experts):
        for name, shape in zip(names, ((F, D), (F, D), (D, F)), strict=True):
            yield f"{block}.experts.{expert}.{name}.weight", shape


def _random(name: str, shape: tuple[int, ...]) -> RawWeight:
    """A whole tensor: its pattern over and over."""
    bits = _pattern(name, shape).data.view(np.uint16).reshape(-1)
    pieces, rest = divmod(prod(shape), len(bits))
    stored = np.concatenate([*[bits] * pieces, bits[:rest]])
    return RawWeight("BF16", shape, stored.view(np.uint8).reshape(-1, 2 * shape[-1]))


def _pattern(name: str, shape: tuple[int, ...]) -> RawWeight:
    """Normal numbers scaled so that activations neither vanish nor explode; norm weights near one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    pool = rng.standard_normal(POOL, dtype=np.float32)
    pool = 1 + 0.1 * pool if name.endswith("norm.weight") else pool / np.float32(shape[-1] ** 0.5)
    return RawWeight("BF16", (POOL,), _to_bf16(pool).view(np.uint8).reshape(1, -1))


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even, as its bits."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _config(
    model_type: str,
    *,
    layers: int,
    hidden: int,
    heads: tuple[int, int],
    ffn: int,
    vocab: int,
    context: int,
    theta: float,
    tied: bool = False,
    eps: float = 1e-6,
    eos: int = 2,
    **more: Any,
) -> dict[str, Any]:
    """A config.json in few words; `heads` are query heads and KV heads."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rope_theta": theta,
        "tie_word_embeddings": tied,
        "rms_norm_eps": eps,
        "eos_token_id": eos,
        **more,
    }


def _tiny(model_type: str, **more: Any) -> dict[str, Any]:
    """Small enough for any test; a vocabulary that every byte-level tokenizer of 256 fits in."""
    return _config(
        model_type, layers=2, hidden=64, heads=(4, 2), ffn=128, vocab=320, context=512, theta=1e4, tied=True, **more
    )


CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama-tiny": _tiny("llama"),
    "mistral-tiny": _tiny("mistral", sliding_window=16),
    "qwen2-tiny": _tiny("qwen2"),
    "qwen3-tiny": _tiny("qwen3", head_dim=32),
    "mixtral-tiny": _tiny("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen3moe-tiny": _tiny(
        "qwen3_moe", head_dim=32, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=64, norm_topk_prob=True
    ),
    "smollm2-135m": _config(
        "llama", layers=30, hidden=576, heads=(9, 3), ffn=1536, vocab=49152, context=8192, theta=1e5, tied=True,
        eps=1e-5,
    ),
    "llama-3.2-1b": _config(
        "llama", layers=16, hidden=2048, heads=(32, 8), ffn=8192, vocab=128256, context=131072, theta=5e5, tied=True,
        eps=1e-5, eos=128001, head_dim=64, rope_scaling=LLAMA3_ROPE,
    ),
    "llama-3.1-8b": _config(
        "llama", layers=32, hidden=4096, heads=(32, 8), ffn=14336, vocab=128256, context=131072, theta=5e5, eps=1e-5,
        eos=128001, rope_scaling=LLAMA3_ROPE | {"factor": 8.0},
    ),
    "mistral-7b": _config(
        "mistral", layers=32, hidden=4096, heads=(32, 8), ffn=14336, vocab=32000, context=32768, theta=1e4, eps=1e-5,
        sliding_window=4096,
    ),
    "qwen2.5-0.5b": _config(
        "qwen2", layers=24, hidden=896, heads=(14, 2), ffn=4864, vocab=151936, context=32768, theta=1e6, tied=True,
        eos=151645,
    ),
    "qwen2.5-7b": _config(
        "qwen2", layers=28, hidden=3584, heads=(28, 4), ffn=18944, vocab=152064, context=32768, theta=1e6, eos=151645
    ),
    "qwen3-0.6b": _config(
        "qwen3", layers=28, hidden=1024, heads=(16, 8), ffn=3072, vocab=151936, context=40960, theta=1e6, tied=True,
        eos=151645, head_dim=128,
    ),
    "qwen3-30b-a3b": _config(
        "qwen3_moe", layers=48, hidden=2048, heads=(32, 4), ffn=6144, vocab=151936, context=40960, theta=1e6,
        eos=151645, head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        norm_topk_prob=True,
    ),
    "qwen3-14b": _config(
        "qwen3", layers=40, hidden=5120, heads=(40, 8), ffn=17408, vocab=151936, context=40960, theta=1e6, eos=151645,
        head_dim=128,
    ),
}  # fmt: skip
