"""Each family, from a folder that transformers saved to logits, against transformers itself, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 3.0}
THETA = {"rope_theta": 500.0}

EXPERTS = {"head_dim": 20, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 56}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, head_dim apart from hidden": ("Llama", {"head_dim": 32}),
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3 | THETA}),
    "llama, linear rope": ("Llama", {"rope_parameters": LINEAR | THETA}),
    "llama, yarn rope": ("Llama", {"rope_parameters": YARN | THETA}),
    "mistral, window": ("Mistral", {"sliding_window": 7}),
    "mistral, no window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2, window in the later layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3", {"head_dim": 20}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7}),
    "qwen3-moe": ("Qwen3Moe", EXPERTS | {"norm_topk_prob": True}),
    "qwen3-moe, weights as the softmax says": ("Qwen3Moe", EXPERTS | {"norm_topk_prob": False}),
    "qwen3, window, biases": (
        "Qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 2,
            "attention_bias": True,
            "head_dim": 16,
        },
    ),
}


def save_model(folder: Path, family: str, options: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose every parameter matters: norms are not one and biases not zero."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def reference_logits(model: Any, prompt: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([prompt])).logits[0]
    return logits


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_however_the_prompts_are_cut(tmp_path, driver_for, schedules, case) -> None:
    """Red if an equation, a weight name, a window, a bias, a rope scaling or a pass is wrong."""
    family, options = CASES[case]
    model = save_model(tmp_path, family, options)
    driver = driver_for(tmp_path)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 131, (n,), generator=generator).tolist() for n in (1, 9, 41)]
    expected = [reference_logits(model, prompt) for prompt in prompts]
    assert max(logits.std() for logits in expected) > 0.1, "the model says nothing: the comparison would be empty"
    for prompt, logits in zip(prompts, expected, strict=True):
        torch.testing.assert_close(driver.traced(prompt), logits, atol=1e-4, rtol=0, msg=lambda m: f"traced: {m}")
    for name, schedule in schedules.items():
        for computed, logits in zip(driver.lowered(prompts, schedule(prompts)), expected, strict=True):
            torch.testing.assert_close(computed, logits, atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_bfloat16_folder_in_many_files(tmp_path, driver_for, schedules) -> None:
    """Red if bf16 tensors are misread or the index of a sharded folder is not followed."""
    model = save_model(tmp_path / "one", "Llama", {}, torch.bfloat16)
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    prompts = [[1, 2, 3, 4, 5]]
    oracle = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.float32)
    expected = reference_logits(oracle, prompts[0])
    for folder in ("one", "many"):
        driver = driver_for(tmp_path / folder)
        (logits,) = driver.lowered(prompts, schedules["whole"](prompts))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
