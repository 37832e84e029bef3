"""Greedy tokens of the default model in float32 against transformers: the change that turns these red is any wrong
number anywhere between the checkpoint's bytes and the sampler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from phloem import LLM, SamplingParams

NUM_TOKENS = 16
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


class Oracle:
    """transformers in float32. Greedy decoding is checked by forcing: if every token of an answer is the most likely
    one after the prompt and the tokens before it, the answer is the greedy one. One forward pass an answer."""

    def __init__(self, path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        ).eval()

    @torch.inference_mode()
    def greedy(self, prompt: list[int], answer: list[int]) -> list[int]:
        """The most likely token at each place of `answer`."""
        logits = self._model(torch.tensor([prompt + answer])).logits[0]
        return logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()


@pytest.fixture(scope="module")
def oracle(default_model: Path) -> Oracle:
    return Oracle(default_model)


def tokens(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [list(out.outputs[0].token_ids) for out in llm.generate(prompts, params, progress=False)]


@pytest.fixture(scope="module")
def alone(float32_llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Each prompt by itself, in an empty cache."""
    return [tokens(float32_llm, [prompt])[0] for prompt in prompts]


@pytest.mark.slow
def test_alone_and_cold(oracle: Oracle, alone: list[list[int]], prompts: list[list[int]]) -> None:
    assert alone == [oracle.greedy(prompt, answer) for prompt, answer in zip(prompts, alone, strict=True)]


def test_a_warm_batch_of_32(float32_llm: LLM, alone: list[list[int]], prompts: list[list[int]]) -> None:
    again = float32_llm.generate(prompts, GREEDY, progress=False)
    assert [list(out.outputs[0].token_ids) for out in again] == alone
    assert sum(out.usage.cached_tokens for out in again) > 0.9 * sum(map(len, prompts)), "the cache was not warm"


def test_a_cold_batch_of_32(default_model: Path, alone: list[list[int]], prompts: list[list[int]]) -> None:
    """No cache at all, chunks of 96 tokens: every prompt is cut, and shares its steps with others."""
    options = {"prefix_cache": False, "max_step_tokens": 96, "memory_gb": 2.0, "max_model_len": 2048}
    with LLM(str(default_model), dtype="float32", **options) as llm:
        assert tokens(llm, prompts) == alone
