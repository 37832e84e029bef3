"""The default model on several processes: greedy tokens in float32 are those of one."""

from __future__ import annotations

import pytest

from phloem import LLM, SamplingParams

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
