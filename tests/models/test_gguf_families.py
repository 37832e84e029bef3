"""Each family from GGUF: a transformers model written as llama.cpp's converter would, against its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phloem.graph.checkpoint.open import open_checkpoint
from phloem.graph.weights import Concat, Rows, Stored, load_raw
from phloem.models.catalog import define_model

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama with rope_freqs": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama with biases": ("Llama", {"attention_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def write(path: Path, architecture: str, folder: Path) -> None:
    """What convert_hf_to_gguf does: names, and for llama the rows of q and k in the order of neighbouring pairs."""
    definition = define_model(open_checkpoint(folder))
    dims, family = definition.dims, definition.family
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(dims.num_layers)
    writer.add_context_length(dims.max_context)
    writer.add_embedding_length(dims.hidden)
    writer.add_feed_forward_length(dims.ffn)
    writer.add_head_count(dims.num_heads)
    writer.add_head_count_kv(dims.num_kv_heads)
    writer.add_key_length(dims.head_dim)
    writer.add_value_length(dims.head_dim)
    writer.add_layer_norm_rms_eps(dims.eps)
    writer.add_rope_freq_base(1e4)
    for parameter, recipe in definition.recipes.items():
        if parameter == "inv_freq":
            continue
        layer = next((part for part in parameter.split(".") if part.isdigit()), None)
        pattern = parameter.replace(f".{layer}.", ".{}.", 1)
        array = load_raw(recipe, definition.checkpoint).dequantize()
        if architecture == "llama" and ("attention.q." in parameter or "attention.k." in parameter):
            halves = array.reshape(-1, 2, dims.head_dim // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(family.names[pattern][1].format(layer), np.ascontiguousarray(array))
    plain = 1e4 ** -(np.arange(0, dims.head_dim, 2, dtype=np.float32) / dims.head_dim)
    if not np.allclose(plain, dims.rope.inv_freq):
        writer.add_tensor("rope_freqs.weight", (plain / dims.rope.inv_freq).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_transformers(tmp_path, driver_for, schedules, case: str) -> None:
    """Red if a GGUF name, the order of q and k's rows, a bias or the rotary factors are taken wrongly."""
    family, options = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path)
    write(tmp_path / "model.gguf", family.lower(), tmp_path)
    driver = driver_for(tmp_path / "model.gguf")
    prompt = torch.randint(0, 131, (1, 23), generator=torch.Generator().manual_seed(1))
    (logits,) = driver.lowered(prompt.tolist(), schedules["chunked"](prompt.tolist()))
    torch.testing.assert_close(logits, model(prompt).logits[0], atol=1e-4, rtol=0)


def test_rows_of_q_and_k_are_permuted_without_leaving_their_encoding(default_model: Path) -> None:
    """Red if undoing the row order dequantizes the default model's weights."""
    definition = define_model(open_checkpoint(default_model))
    q, k, v = (definition.recipes[f"layers.0.attention.{x}.weight"] for x in "qkv")
    assert isinstance(q, Rows)
    assert isinstance(k, Rows)
    assert isinstance(v, Stored)
    raw = load_raw(Concat((q, k, v)), definition.checkpoint)
    assert (raw.encoding, raw.shape) == ("Q4_1", (960, 576))
