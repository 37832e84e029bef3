"""Values of body fields: what is accepted, how it is read, and that every refusal names its field."""

from __future__ import annotations

import pytest

from phloem.core.errors import ContextLengthExceeded, InvalidRequest
from phloem.core.request import SamplingParams
from phloem.serve.openai import params
from phloem.serve.openai.params import ModelLimits
from phloem.serve.openai.requests import CompletionRequest, StreamOptions

LIMITS = ModelLimits(max_model_len=100, max_prompt_len=99, vocab_size=50)
HUGE = 10**40


def judged(max_tokens: int | None = None, default: int | None = 16, **fields) -> SamplingParams:
    return params.sampling_params(
        CompletionRequest(prompt="x", **fields),
        max_tokens=max_tokens,
        max_tokens_field="max_tokens",
        default_max_tokens=default,
        logprobs=None,
        limits=LIMITS,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"n": -1},
        {"n": 129},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"top_p": 0.0},
        {"top_p": -1.0},
        {"top_p": 1.01},
        {"top_k": -2},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-46},
        {"repetition_penalty": -1.0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"min_tokens": -1},
        {"min_tokens": 17},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 101},
        {"max_tokens": HUGE},
        {"seed": 1 << 63},
        {"seed": -HUGE},
        {"n": HUGE},
        {"top_k": -HUGE},
        {"logit_bias": {"50": 1.0}},
        {"logit_bias": {"-1": 1.0}},
        {"logit_bias": {"a": 1.0}},
        {"logit_bias": {"٣": 1.0}},
        {"logit_bias": {"9" * 5000: 1.0}},
        {"logit_bias": {"1": 101.0}},
        {"logit_bias": {str(i): 0.0 for i in range(1025)}},
        {"stop_token_ids": [50]},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [1] * 257},
        {"suffix": "x"},
        {"guided_json": "{"},
        {"guided_choice": []},
        {"use_beam_search": True},
        {"response_format": {"type": "telepathy"}},
        {"stream_options": StreamOptions(include_usage=True)},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_refused_value_names_its_field(fields):
    """Red when a bound is lost, or an error does not say which field."""
    with pytest.raises(InvalidRequest) as caught:
        judged(**fields)
    [name] = fields
    assert caught.value.field == name
    assert caught.value.message.startswith(name)
    assert len(caught.value.message) < 300


def test_absent_fields_are_the_identity():
    """Red when a default of the API differs from plain sampling."""
    assert judged() == SamplingParams(max_tokens=16)


def test_every_field_arrives():
    """Red when a field is parsed and then forgotten."""
    assert judged(
        max_tokens=50,
        n=2,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1.0,
        frequency_penalty=1.0,
        logit_bias={"3": -100.0},
        seed=5,
        stop=["a", "b"],
        stop_token_ids=[4, 4, 2],
        ignore_eos=True,
        min_tokens=3,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
    ) == SamplingParams(
        max_tokens=50,
        n=2,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1.0,
        frequency_penalty=1.0,
        logit_bias={3: -100.0},
        seed=5,
        stop=("a", "b"),
        stop_token_ids=(4, 2),
        ignore_eos=True,
        min_tokens=3,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
    )


def test_off_switches_and_aliases():
    """Red when the field's spellings of "off" are refused, or a negative seed reaches the engine."""
    assert judged(top_k=-1).top_k == judged(top_k=0).top_k == 0
    assert judged(top_k=HUGE).top_k == LIMITS.vocab_size
    assert judged(stop="x").stop == ("x",)
    assert judged(suffix="", use_beam_search=False) == judged()
    assert 0 <= judged(seed=-1).seed < 1 << 63
    assert judged(default=None).max_tokens == LIMITS.max_model_len


def test_context_clips_what_is_asked_and_refuses_what_cannot_be():
    """Red when max_tokens runs past the context, or a long or empty prompt goes to the engine."""

    def fit(tokens: int, sampling: SamplingParams) -> SamplingParams:
        return params.fit_context(sampling, num_prompt_tokens=tokens, limits=LIMITS, field="prompt")

    wide = SamplingParams(max_tokens=100, min_tokens=60)
    assert fit(10, SamplingParams(max_tokens=16)) == SamplingParams(max_tokens=16)
    assert (fit(50, wide).max_tokens, fit(50, wide).min_tokens) == (50, 50)
    assert fit(99, wide).max_tokens == 1
    with pytest.raises(ContextLengthExceeded, match="100 tokens"):
        fit(100, wide)
    with pytest.raises(InvalidRequest, match="empty"):
        fit(0, wide)


def test_priority_and_salt_have_bounds():
    """Red when they reach the wire unbounded."""
    assert params.request_priority(CompletionRequest(prompt="x", priority=-3)) == -3
    assert params.cache_namespace(CompletionRequest(prompt="x", cache_salt="tenant")) == "tenant"
    for field, value, judge in (
        ("priority", HUGE, params.request_priority),
        ("cache_salt", "x" * 257, params.cache_namespace),
    ):
        with pytest.raises(InvalidRequest) as caught:
            judge(CompletionRequest(prompt="x", **{field: value}))
        assert caught.value.field == field
