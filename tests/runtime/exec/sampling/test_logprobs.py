"""Log-probabilities against torch's log_softmax and a stable sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from phloem.core.errors import RequestFailed
from phloem.runtime.exec.sampling import logprobs as module
from phloem.runtime.exec.sampling.logprobs import LOWEST_LOGPROB, prompt_logprobs, token_logprob


@pytest.mark.parametrize("vocab_size", [3, 700, 49_152])
@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_entry_equals_log_softmax_and_a_stable_sort(vocab_size: int, num_top: int) -> None:
    """Red if the normaliser, the rank or the order of the alternatives is wrong. Rounded logits make ties."""
    generator = np.random.default_rng(vocab_size + num_top)
    logits = np.round(generator.standard_normal(vocab_size) * 4, 1).astype(np.float32)
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    order = np.argsort(-logits, kind="stable").tolist()
    for token_id in {order[0], order[-1], order[vocab_size // 2], int(generator.integers(vocab_size))}:
        entry = token_logprob(logits, token_id, num_top)
        assert entry.token_id == token_id
        assert entry.logprob == pytest.approx(expected[token_id], abs=2e-6)
        assert entry.rank == order.index(token_id) + 1
        assert [alternative for alternative, _ in entry.top] == order[:num_top]
        assert [value for _, value in entry.top] == pytest.approx(expected[order[:num_top]].tolist(), abs=2e-6)


def test_an_impossible_token_has_a_finite_log_probability() -> None:
    """Red if minus infinity reaches JSON."""
    entry = token_logprob(np.array([0.0, -np.inf, -np.inf], dtype=np.float32), 1, 3)
    assert (entry.logprob, entry.rank) == (LOWEST_LOGPROB, 2)
    assert entry.top == ((0, 0.0), (1, LOWEST_LOGPROB), (2, LOWEST_LOGPROB))


def test_prompt_entries_are_those_of_the_rows_whatever_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a slice drops, repeats or shifts a position."""
    logits = torch.randn(17, 50, generator=torch.Generator().manual_seed(0))
    chosen = torch.randint(50, (12,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = tuple(token_logprob(logits[3 + i].numpy(), token_id, 2) for i, token_id in enumerate(chosen))
    assert prompt_logprobs(logits, chosen, 2, first_row=3) == expected
    monkeypatch.setattr(module, "BYTES_PER_SLICE", 5 * 50 * 4)
    assert prompt_logprobs(logits, chosen, 2, first_row=3) == expected
    assert prompt_logprobs(logits, [], 2) == ()


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinity")])
def test_bad_prompt_logits_fail_the_request(value: float, word: str) -> None:
    """Red if a NaN is reported as a log-probability."""
    logits = torch.zeros(4, 10)
    logits[2, 5] = value
    with pytest.raises(RequestFailed, match=word):
        prompt_logprobs(logits, [1, 2, 3], 0)
    assert len(prompt_logprobs(logits, [1, 2], 0)) == 2
