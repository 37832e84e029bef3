"""A token's numbers do not depend on its neighbours (docs/decisions/0002): compared with ==, in the default type.

Red as soon as a kernel sums in another order for another number of rows, chunk, split or cache hit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from phloem import LLM, SamplingParams
from phloem.core.request import TokenLogprob

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)

Scored = list[tuple[TokenLogprob, ...] | None]


def scored(llm: LLM, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> Scored:
    """Log-probabilities to the last bit, and with them the tokens."""
    return [out.outputs[0].logprobs for out in llm.generate(prompts, params, progress=False)]


def test_alone_equals_in_a_batch(fast_llm: LLM, prompts: list[list[int]]) -> None:
    alone = [scored(fast_llm, [prompt], GREEDY)[0] for prompt in prompts]
    assert scored(fast_llm, prompts, GREEDY) == alone


def test_chunks_and_cache_change_nothing(fast_llm: LLM, default_model: Path, prompts: list[list[int]]) -> None:
    whole = scored(fast_llm, prompts, GREEDY)
    options = {"prefix_cache": False, "max_step_tokens": 67, "memory_gb": 1.0, "max_model_len": 2048}
    with LLM(str(default_model), **options) as chunked:
        assert scored(chunked, prompts, GREEDY) == whole


def test_preemption_changes_nothing(fast_llm: LLM, default_model: Path, prompts: list[list[int]]) -> None:
    """A pool that cannot hold the batch: sequences lose their pages and are computed again."""
    params = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True, logprobs=0)
    short = [prompt[:60] for prompt in prompts[12:28]]
    expected = scored(fast_llm, short, params)
    with LLM(str(default_model), memory_gb=0.045, max_model_len=512) as small:
        assert scored(small, short, params) == expected
        stats = small.stats()
        assert stats is not None
        assert stats.num_preemptions > 0, "the pool was large enough; the test shows nothing"


def test_shared_prefix_read_once_changes_nothing(fast_llm: LLM, prompts: list[list[int]]) -> None:
    """Rows below one cached prefix of 20 pages form a group; alone they do not."""
    prefix = (prompts[-1] * 3)[:640]
    below = [prefix + prompt[:20] for prompt in prompts[8:20]]
    together = scored(fast_llm, below, GREEDY)
    assert [scored(fast_llm, [prompt], GREEDY)[0] for prompt in below] == together


def test_same_seed_same_tokens_whatever_the_batch(fast_llm: LLM, prompts: list[list[int]]) -> None:
    params = [SamplingParams(temperature=0.9, top_p=0.95, seed=index, max_tokens=24) for index in range(len(prompts))]
    together = fast_llm.generate(prompts, params, progress=False)
    alone = [fast_llm.generate([prompt], params[index], progress=False)[0] for index, prompt in enumerate(prompts)]
    assert [out.outputs[0].token_ids for out in together] == [out.outputs[0].token_ids for out in alone]
    assert len({out.outputs[0].token_ids for out in together}) > 24, "nothing was sampled"


@pytest.mark.parametrize(("dtype", "mean_error"), [("bfloat16", 0.05), ("auto", 0.1)])
def test_fast_types_stay_near_float32(
    default_model: Path, float32_llm: LLM, prompts: list[list[int]], dtype: str, mean_error: float
) -> None:
    """bfloat16 moves log-probabilities by what 2^-8 of logits of ~20 is; int8 blocks (auto, without AMX) by three times
    that, which is what llama.cpp's own arithmetic does (bench/accuracy.py, decision 0003)."""
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
    exact = scored(float32_llm, prompts, params)
    with LLM(str(default_model), dtype=dtype, memory_gb=1, max_model_len=2048) as llm:
        fast = scored(llm, prompts, params)
    errors = [
        abs(a[0].logprob - b[0].logprob)
        for a, b in zip(exact, fast, strict=True)
        if a and b and a[0].token_id == b[0].token_id
    ]
    assert len(errors) >= 0.9 * len(prompts), "more than one in ten first tokens flipped"
    assert sum(errors) / len(errors) < mean_error
