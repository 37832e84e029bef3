"""The default model on several processes: greedy tokens in float32 are those of one."""

from __future__ import annotations

import numpy as np
import pytest

from phloem import LLM, ConfigError, SamplingParams

PROMPTS = [
    "The capital of Japan is",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils at",
    "The quick brown fox jumps over the lazy dog. " * 30 + "What animal was lazy?",
    "1, 2, 3, 5, 8,",
]


def answers(**options: int) -> list[tuple[int, ...]]:
    greedy = SamplingParams(temperature=0, max_tokens=24)
    with LLM(dtype="float32", max_model_len=1024, memory_gb=0.5, max_step_tokens=128, **options) as llm:
        outputs = llm.generate(PROMPTS * 2, greedy, progress=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def alone(default_model) -> list[tuple[int, ...]]:
    return answers()


@pytest.mark.parametrize("mesh", [{"tp": 2}, {"pp": 2}, {"tp": 2, "pp": 2}], ids=str)
def test_tokens_do_not_depend_on_the_mesh(default_model, alone, mesh: dict[str, int]) -> None:
    """Red if any rank computes something else than its part, or a pipeline feeds a row a token it should not know yet.
    The prompts are longer than a step, so that chunks of one are in flight together."""
    assert answers(**mesh) == alone


def expert_answers(**options: int) -> list[tuple[int, ...]]:
    prompts = [[(7 * i + j) % 300 for j in range(5 + 9 * i)] for i in range(6)]
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    with LLM("dummy:qwen3moe-tiny", dtype="float32", max_step_tokens=64, memory_gb=0.1, **options) as llm:
        outputs = llm.generate(prompts, greedy, progress=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("mesh", [{"tp": 2, "ep": 2}, {"tp": 2}], ids=["whole experts", "parts of experts"])
def test_experts_may_be_anywhere(mesh: dict[str, int]) -> None:
    """Red if a row comes back from another rank's expert to the wrong token, or an expert's part is left out."""
    assert expert_answers(**mesh) == expert_answers()


def test_experts_are_spread_over_the_ranks_of_a_layer() -> None:
    """Red if a mesh that cannot be is built, or the message does not say what would do."""
    with pytest.raises(ConfigError, match="--ep 2 needs --tp 2") as error:
        LLM("dummy:qwen3moe-tiny", ep=2)
    assert error.value.field == "ep"


def bfloat16_logprobs(**options: int) -> np.ndarray:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    with LLM(dtype="bfloat16", max_model_len=1024, memory_gb=0.5, max_step_tokens=128, **options) as llm:
        outputs = llm.generate(PROMPTS, params, progress=False)
    return np.array([each.logprob for output in outputs for each in output.prompt_logprobs if each is not None])


def test_bfloat16_on_ranks_stays_within_its_tolerance(default_model) -> None:
    """Red if stages of a pipeline round what one process does not, or tensor ranks lose more than rounded partial
    sums do (docs/parallelism.md)."""
    alone = bfloat16_logprobs()
    assert np.array_equal(bfloat16_logprobs(pp=2), alone)
    error = np.abs(bfloat16_logprobs(tp=2) - alone)
    assert error.mean() < 0.04
    assert error.max() < 0.5
