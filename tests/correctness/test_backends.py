"""Without a native library the same graph runs on the references: the same tokens, for every family.

Red when the fallback breaks, or when a kernel and its reference part ways inside a whole model (windows, biases and
q/k norms included: the prompts are longer than the window of the tiny Mistral).
"""

from __future__ import annotations

import pytest

from phloem import LLM, SamplingParams
from phloem.kernels.cpu import library

PROMPTS = [
    [7 * index % 250 + 1 for index in range(start, start + length)] for start, length in ((0, 3), (9, 40), (5, 90))
]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def answers(model: str) -> tuple[list[tuple[int, ...]], str]:
    with LLM(model, dtype="float32", memory_gb=0.1, max_step_tokens=48) as llm:
        return [out.outputs[0].token_ids for out in llm.generate(PROMPTS, GREEDY, progress=False)], llm.memory


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_references_answer_as_the_kernels_do(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    if library.load().library is None:
        pytest.skip(library.load().reason)
    native, backend = answers(f"dummy:{family}-tiny")
    assert "native tape" in backend
    monkeypatch.setattr(library, "load", lambda: library.Found(None, "hidden by a test"))
    fallback, backend = answers(f"dummy:{family}-tiny")
    assert "slow: hidden by a test" in backend
    assert fallback == native
