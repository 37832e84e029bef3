"""GGUF metadata -> Dims. Keys: the GGUF specification's `{architecture}.*`."""

from __future__ import annotations

from phloem.graph.checkpoint.checkpoint import Checkpoint
from phloem.models.definition import Dims, Rope
from phloem.models.fields import MAX_CONTEXT, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, Fields
from phloem.models.rope import base_frequencies, linear, yarn, yarn_attention_factor

EMBEDDING, LM_HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"


def read_dims(checkpoint: Checkpoint) -> Dims:
    """The numbers of the model; ModelError names a field that is missing, malformed or not supported."""
    architecture = str(checkpoint.config.get("general.architecture"))
    fields = Fields(checkpoint.path, checkpoint.config, prefix=f"{architecture}.")
    if fields.integer("expert_count", 0, least=0):
        raise fields.error("expert_count", "is not zero: mixtures of experts are not supported")
    hidden, num_layers = fields.integer("embedding_length"), fields.integer("block_count", most=MAX_LAYERS)
    num_heads = fields.integer("attention.head_count", most=MAX_HEADS)
    num_kv_heads = fields.integer("attention.head_count_kv", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("attention.head_count_kv", f"is {num_kv_heads}, which does not divide {num_heads} heads")
    head_dim = fields.integer("attention.key_length", hidden // num_heads, most=MAX_HEAD_DIM)
    for name in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(name, head_dim) != head_dim or head_dim % 2:
            raise fields.error(name, f"is {fields.get(name)}, expected the head size {head_dim}, an even number")
    if EMBEDDING not in checkpoint.tensors or len(checkpoint.tensors[EMBEDDING].shape) != 2:
        raise fields.error("embedding_length", f"has no matrix {EMBEDDING!r} to go with it; download the file again")
    window = fields.integer("attention.sliding_window", 0, least=0, most=MAX_CONTEXT) or None
    return Dims(
        num_layers=num_layers,
        hidden=hidden,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        ffn=fields.integer("feed_forward_length"),
        vocab=checkpoint.tensors[EMBEDDING].shape[0],
        eps=fields.number("attention.layer_norm_rms_epsilon"),
        max_context=fields.integer("context_length", most=MAX_CONTEXT),
        windows=(window,) * num_layers,
        rope=_rope(checkpoint, fields, head_dim),
        tied=LM_HEAD not in checkpoint.tensors,
        attention_bias="blk.0.attn_q.bias" in checkpoint.tensors,
        mlp_bias="blk.0.ffn_down.bias" in checkpoint.tensors,
    )


def _rope(checkpoint: Checkpoint, fields: Fields, head_dim: int) -> Rope:
    theta = fields.number("rope.freq_base", 10_000.0)
    plain = base_frequencies(theta, head_dim)
    kind = fields.get("rope.scaling.type") or "none"
    factor = fields.number("rope.scaling.factor", 1.0)
    if ROPE_FACTORS in checkpoint.tensors:  # Llama 3.1's scaling, one divisor a frequency
        divisors = checkpoint.tensors[ROPE_FACTORS].dequantize()
        if divisors.shape != plain.shape or not (divisors > 0).all():
            raise fields.error("rope.dimension_count", f"does not go with the tensor {ROPE_FACTORS!r}")
        return Rope(plain / divisors)
    match kind:
        case "none":
            return Rope(plain)
        case "linear":
            return Rope(linear(plain, factor))
        case "yarn":
            original = fields.integer("rope.scaling.original_context_length", most=MAX_CONTEXT)
            stretched = yarn(plain, theta=theta, factor=factor, original=original)
            attention_factor = fields.number("rope.scaling.attn_factor", 1.0) * yarn_attention_factor(factor)
            return Rope(stretched, attention_factor)
    raise fields.error("rope.scaling.type", f"is {kind!r}; supported: none, linear, yarn")
