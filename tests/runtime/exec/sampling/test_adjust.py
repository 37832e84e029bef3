"""Bias, held-back end tokens and penalties against transformers' processors and the OpenAI formula."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from phloem.core.request import SamplingParams
from phloem.runtime.exec.sampling.adjust import adjusted
from phloem.runtime.exec.sampling.state import SamplingState

VOCAB_SIZE = 100
PROMPT, GENERATED = [3, 5, 5, 9], [7, 3, 7, 7]


def make(
    params: SamplingParams, generated: list[int] = GENERATED, end_token_ids: tuple[int, ...] = ()
) -> SamplingState:
    return SamplingState(
        params=params, seed=0, prompt=PROMPT, generated=generated, vocab_size=VOCAB_SIZE, end_token_ids=end_token_ids
    )


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(VOCAB_SIZE).astype(np.float32) * 3


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_equals_transformers(logits: np.ndarray, penalty: float) -> None:
    """Red if the prompt is left out, a token is penalised once per occurrence, or negative logits are divided."""
    oracle = RepetitionPenaltyLogitsProcessor(penalty)
    expected = oracle(torch.tensor([PROMPT + GENERATED]), torch.from_numpy(logits.copy())[None])[0].numpy()
    np.testing.assert_allclose(adjusted(logits, make(SamplingParams(repetition_penalty=penalty))), expected, rtol=1e-6)


def test_logit_bias_equals_transformers(logits: np.ndarray) -> None:
    """Red if the bias is scaled, applied twice, or put on another token."""
    bias = {3: -100.0, 50: 2.5, 99: 100.0}
    oracle = SequenceBiasLogitsProcessor({(token_id,): value for token_id, value in bias.items()})
    expected = oracle(torch.tensor([PROMPT]), torch.from_numpy(logits.copy())[None])[0].numpy()
    np.testing.assert_allclose(adjusted(logits, make(SamplingParams(logit_bias=bias))), expected, rtol=1e-6)


@pytest.mark.parametrize("num_generated", [0, 2, 3])
def test_min_tokens_equals_transformers_and_covers_stop_token_ids(logits: np.ndarray, num_generated: int) -> None:
    """Red if end tokens are released one token early or late, or if stop_token_ids are not held back."""
    generated = [1] * num_generated
    oracle = MinNewTokensLengthLogitsProcessor(len(PROMPT), 3, [11, 12], device="cpu")
    expected = oracle(torch.tensor([PROMPT + generated]), torch.from_numpy(logits.copy())[None])[0].numpy()
    state = make(SamplingParams(min_tokens=3, stop_token_ids=(12,)), generated, end_token_ids=(11,))
    np.testing.assert_array_equal(adjusted(logits, state), expected)


@settings(max_examples=100, deadline=None)
@given(
    generated=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=60),
    num_appended=st.integers(0, 60),
    repetition=st.sampled_from([1.0, 1.2, 0.8]),
    presence=st.sampled_from([0.0, 0.5, -2.0]),
    frequency=st.sampled_from([0.0, 0.25, -1.0]),
)
def test_penalties_follow_the_formula_however_the_tokens_arrived(
    generated: list[int], num_appended: int, repetition: float, presence: float, frequency: float
) -> None:
    """Red if append counts differently from the constructor, or if presence or frequency see the prompt."""
    logits = np.random.default_rng(len(generated)).standard_normal(VOCAB_SIZE).astype(np.float32)
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency, logit_bias={7: 1.0}
    )
    first = max(0, len(generated) - num_appended)
    state = make(params, generated[:first])
    for token_id in generated[first:]:
        state.append(token_id)
    counts = Counter(generated)
    expected = logits.astype(np.float64)
    expected[7] += 1.0
    for token_id in {*PROMPT, *generated}:
        value = expected[token_id]
        value = value / repetition if value > 0 else value * repetition
        expected[token_id] = value - counts[token_id] * frequency - (counts[token_id] > 0) * presence
    np.testing.assert_allclose(adjusted(logits, state), expected, rtol=1e-5, atol=1e-5)


def test_ids_outside_the_vocabulary_are_ignored(logits: np.ndarray) -> None:
    """Red if a bias or an end token beyond the logits raises or wraps around to the end of the row."""
    params = SamplingParams(
        min_tokens=9, logit_bias={-1: 5.0, VOCAB_SIZE: 5.0, 10**9: 5.0}, stop_token_ids=(VOCAB_SIZE, -1)
    )
    np.testing.assert_array_equal(adjusted(logits, make(params, end_token_ids=(10**6,))), logits)


def test_the_logits_are_only_read(logits: np.ndarray) -> None:
    """Red if a row of the static buffer is changed in place: log-probabilities are of the raw row."""
    logits.flags.writeable = False
    params = SamplingParams(repetition_penalty=1.1, logit_bias={1: 1.0}, min_tokens=100)
    assert adjusted(logits, make(params, end_token_ids=(2,))) is not logits
    assert adjusted(logits, make(SamplingParams())) is logits
