"""config.json of a Hugging Face folder -> Dims."""

from __future__ import annotations

from typing import Any

from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.models.definition import Dims
from phloem.models.fields import MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, Fields
from phloem.models.rope import read_rope

LM_HEAD = "lm_head.weight"


def read_dims(checkpoint: Checkpoint) -> Dims:
    """The numbers of the model; ModelError names a field that is missing, malformed or not supported."""
    fields = Fields(checkpoint.path, checkpoint.config)
    _refuse_unsupported(fields)
    num_heads, hidden = fields.integer("num_attention_heads", most=MAX_HEADS), fields.integer("hidden_size")
    num_layers, max_context = (
        fields.integer("num_hidden_layers", most=MAX_LAYERS),
        fields.integer("max_position_embeddings", most=MAX_CONTEXT),
    )
    head_dim = fields.integer("head_dim", hidden // num_heads, most=MAX_HEAD_DIM)
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"is {num_kv_heads}, which does not divide {num_heads} heads")
    if head_dim % 2:
        raise fields.error("head_dim", f"is {head_dim}, expected an even number")
    return Dims(
        num_layers=num_layers,
        hidden=hidden,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        ffn=fields.integer("intermediate_size"),
        vocab=fields.integer("vocab_size"),
        eps=fields.number("rms_norm_eps", 1e-6),
        max_context=max_context,
        windows=_windows(fields, num_layers),
        rope=read_rope(fields, head_dim, max_context),
        tied=fields.boolean("tie_word_embeddings", LM_HEAD not in checkpoint.tensors),
        attention_bias=fields.boolean("attention_bias"),
        mlp_bias=fields.boolean("mlp_bias"),
        **_experts(fields),
    )


def _experts(fields: Fields) -> dict[str, Any]:
    """The numbers of a mixture of experts; nothing for a dense model. ModelError where some layers would be dense."""
    if fields.get("model_type") == "mixtral":
        names = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
    elif fields.get("model_type") == "qwen3_moe":
        names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
        if fields.get("mlp_only_layers") or fields.integer("decoder_sparse_step", 1) != 1:
            raise fields.error(
                "mlp_only_layers", "makes some layers dense; models whose every layer has experts are known"
            )
    else:
        return {}
    if names[0] not in fields:  # transformers 5 writes either name for either family
        names = ("num_local_experts" if names[0] == "num_experts" else "num_experts", *names[1:])
    num_experts, per_token, ffn = (fields.integer(name) for name in names)
    if per_token > num_experts:
        raise fields.error("num_experts_per_tok", f"is {per_token}, more than the {num_experts} experts there are")
    normalizes = fields.boolean("norm_topk_prob", False) if fields.get("model_type") == "qwen3_moe" else True
    return {
        "num_experts": num_experts,
        "experts_per_token": per_token,
        "expert_ffn": ffn,
        "normalizes_experts": normalizes,
    }


def _refuse_unsupported(fields: Fields) -> None:
    if "quantization_config" in fields:
        method = fields.table("quantization_config").get("quant_method")
        problem = f"says the weights are quantized ({method}); use unquantized safetensors or a GGUF file"
        raise fields.error("quantization_config", problem)
    activation = fields.get("hidden_act")
    if activation not in (None, "silu"):
        raise fields.error("hidden_act", f"is {activation!r}; supported: 'silu'")


def _windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """Mistral, Mixtral: one `sliding_window` for all. The others: only with `use_sliding_window`, and by layer."""
    if "sliding_window" not in fields or not fields.boolean(
        "use_sliding_window", fields.get("model_type") in ("mistral", "mixtral")
    ):
        return (None,) * num_layers
    window = fields.integer("sliding_window", most=MAX_CONTEXT)
    kinds = fields.get("layer_types")
    if kinds is None and "max_window_layers" in fields:
        full = fields.integer("max_window_layers", least=0)
        return tuple(window if layer >= full else None for layer in range(num_layers))
    if kinds is None:
        return (window,) * num_layers
    known = {"sliding_attention": window, "full_attention": None}
    if not isinstance(kinds, list) or len(kinds) != num_layers or not all(kind in known for kind in kinds):
        raise fields.error("layer_types", f"is not a list of {num_layers} of {', '.join(known)}")
    return tuple(known[kind] for kind in kinds)
