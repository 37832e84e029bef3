"""The whole sampler: batches, seeds, preemption, ties, bad numbers, log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phloem.core.plan import RowStart
from phloem.core.request import SamplingParams
from phloem.runtime.exec.sampling.logprobs import token_logprob
from phloem.runtime.exec.sampling.sample import NO_TOKEN, sample
from phloem.runtime.exec.sampling.state import SamplingState

VOCAB_SIZE = 3_001  # odd, so that rows of a batch are aligned differently
MIXED = [
    SamplingParams(temperature=0),
    SamplingParams(),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.3, top_k=40),
    SamplingParams(min_p=0.05),
    SamplingParams(repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
    SamplingParams(temperature=0, repetition_penalty=1.5, logit_bias={5: 3.0}),
    SamplingParams(temperature=0.9, top_k=100, top_p=0.95, min_p=0.01, logprobs=3),
]


def start(params: SamplingParams, *, seed: int = 0, generated: tuple[int, ...] = (), row: int = 0) -> SamplingState:
    prompt = (1, 2, 3, 2)
    message = RowStart(row, 1, prompt + generated, len(prompt), 0, (), params, seed)
    return SamplingState.start(message, vocab_size=VOCAB_SIZE, end_token_ids=(0,))


def random_logits(rows: int, *, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * spread


def continue_alone(state: SamplingState, first: int, last: int) -> list[int]:
    """Tokens number `first` to `last` of a request whose logits depend only on the position."""
    tokens = []
    for position in range(first, last):
        (token,) = sample(random_logits(1, seed=position), [state]).tokens
        state.append(token)
        tokens.append(token)
    return tokens


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(list(range(32))), seed=st.integers(-(2**63), 2**63), spread=st.sampled_from([0.3, 2.0, 8.0])
)
def test_a_row_samples_the_same_token_alone_and_anywhere_in_a_batch(order: list[int], seed: int, spread: float) -> None:
    """Red if anything is reduced across rows, or if a random number depends on the place in the batch."""
    logits = random_logits(32, seed=seed % 2**32, spread=spread)
    params = [MIXED[i % len(MIXED)] for i in range(32)]
    alone = [sample(logits[i].clone()[None], [start(params[i], seed=seed + i)]) for i in range(32)]
    batched = sample(logits, [start(params[i], seed=seed + i) for i in order], rows=order)
    assert list(batched.tokens) == [alone[i].tokens[0] for i in order]
    assert list(batched.logprobs) == [alone[i].logprobs[0] if alone[i].logprobs else () for i in order]


@pytest.mark.parametrize("params", MIXED)
@pytest.mark.parametrize("cut", [1, 7])
def test_a_preempted_row_continues_as_if_it_had_not_been(params: SamplingParams, cut: int) -> None:
    """Red if the state holds anything that RowStart's tokens do not restore (a generator, a count, a position)."""
    whole = continue_alone(start(params, seed=42), 0, 20)
    resumed = start(params, seed=42, generated=tuple(whole[:cut]), row=9)
    assert continue_alone(resumed, cut, 20) == whole[cut:]


def test_seeds_matter_and_only_seeds() -> None:
    """Red if the seed is ignored, or if choices that share one row of logits (n > 1) share their random number."""
    logits = random_logits(1, spread=0.5)
    different = sample(logits, [start(SamplingParams(), seed=seed) for seed in range(200)], rows=[0] * 200).tokens
    same = sample(logits, [start(SamplingParams(), seed=5) for _ in range(200)], rows=[0] * 200).tokens
    assert len(set(different)) > 100
    assert set(same) == {different[5]}


def test_every_token_of_a_request_has_its_own_random_number() -> None:
    """Red if the number of generated tokens does not reach the random number: equal logits would repeat one token."""
    logits, state = random_logits(1, spread=0.5), start(SamplingParams())
    tokens = []
    for _ in range(200):
        tokens += sample(logits, [state]).tokens
        state.append(tokens[-1])
    assert len(set(tokens)) > 100


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(temperature=9e-6, top_p=0.5), SamplingParams(top_k=1)]
)
def test_ties_go_to_the_lowest_id(params: SamplingParams) -> None:
    """Red if a tie depends on the argmax implementation, on the vector width, or on chance."""
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[0, [17, 900, 3_000]] = 5.0
    logits[2, 3_000] = 1.0
    states = [start(params, seed=seed) for seed in range(3)]
    assert sample(logits, states).tokens == (17, 0, 3_000)


def test_penalised_greedy_is_the_argmax_of_the_adjusted_row() -> None:
    """Red if the argmax of the raw row is taken for a row whose logits are adjusted."""
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 2], logits[0, 8] = 4.0, 3.0
    argmax = [2]
    assert sample(logits, [start(SamplingParams(temperature=0))], argmax=argmax).tokens == (2,)
    assert sample(logits, [start(SamplingParams(temperature=0, repetition_penalty=2.0))], argmax=argmax).tokens == (8,)
    assert sample(logits, [start(SamplingParams(temperature=0, logit_bias={30: 9.0}))], argmax=argmax).tokens == (30,)


def test_end_tokens_wait_for_min_tokens() -> None:
    """Red if a greedy row with min_tokens takes the shortcut before it may end."""
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 0], logits[0, 4] = 9.0, 5.0
    state = start(SamplingParams(temperature=0, min_tokens=2))
    tokens = []
    for _ in range(3):
        tokens += sample(logits, [state]).tokens
        state.append(tokens[-1])
    assert tokens == [4, 4, 0]


@pytest.mark.parametrize("given_argmax", [False, True])
@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=5, logprobs=1)]
)
@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "minus infinity")])
def test_bad_numbers_fail_their_row_only(params: SamplingParams, value: float, word: str, given_argmax: bool) -> None:
    """Red if a bad row yields a token, raises, or touches its neighbours."""
    good = random_logits(3, seed=8)
    states = [start(params, seed=seed) for seed in range(3)]
    expected = sample(good, states)
    bad = good.clone()
    bad[1] = value
    argmax = bad.numpy().argmax(axis=1).tolist() if given_argmax else None
    got = sample(bad, states, argmax=argmax)
    assert got.tokens == (expected.tokens[0], NO_TOKEN, expected.tokens[2])
    assert [index for index, _ in got.failed] == [1]
    assert word in got.failed[0][1]
    if expected.logprobs:
        assert got.logprobs == (expected.logprobs[0], (), expected.logprobs[2])


@pytest.mark.parametrize("params", MIXED)
def test_one_nan_among_good_logits_is_seen(params: SamplingParams) -> None:
    """Red if NaN is looked for only where the token was found."""
    logits = random_logits(1)
    logits[0, 1234] = math.nan
    assert sample(logits, [start(params)]).failed == ((0, "the logits contain NaN"),)


def test_a_row_with_everything_masked_by_its_request_fails() -> None:
    """Red if min_tokens over the whole vocabulary draws an end token."""
    params = SamplingParams(min_tokens=1, stop_token_ids=tuple(range(VOCAB_SIZE)))
    result = sample(random_logits(1), [start(params)])
    assert result.tokens == (NO_TOKEN,)
    assert "no token is possible" in result.failed[0][1]


def test_log_probabilities_are_of_the_raw_logits_and_only_for_rows_that_asked() -> None:
    """Red if temperature, bias or truncation leaks into what is reported."""
    logits = random_logits(3, seed=3)
    asking: dict[str, Any] = {"logprobs": 2, "temperature": 0.3, "top_k": 2, "logit_bias": {77: 50.0}}
    states = [
        start(SamplingParams(temperature=0)),
        start(SamplingParams(**asking)),
        start(SamplingParams(temperature=0, logprobs=0)),
    ]
    result = sample(logits, states)
    assert result.tokens[1] == 77
    assert result.logprobs == (
        (),
        (token_logprob(logits[1].numpy(), 77, 2),),
        (token_logprob(logits[2].numpy(), result.tokens[2], 0),),
    )
    assert sample(logits, states[:1]).logprobs == ()


def test_the_static_buffer_is_only_read() -> None:
    """Red if sampling writes to the logits."""
    logits = random_logits(len(MIXED))
    before = logits.clone()
    sample(logits, [start(params) for params in MIXED])
    assert torch.equal(logits, before)


def test_an_empty_step_samples_nothing() -> None:
    """Red if a step whose rows want no logits raises."""
    assert sample(torch.zeros(0, VOCAB_SIZE), []).tokens == ()
