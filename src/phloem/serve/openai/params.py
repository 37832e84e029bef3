"""Body fields to SamplingParams: the one place where values are judged. Every error names its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from phloem.core.errors import ContextLengthExceeded, InvalidRequest
from phloem.core.request import SamplingParams
from phloem.serve.openai.constraints import constrained, read_constraint
from phloem.serve.openai.errors import Unsupported
from phloem.serve.openai.requests import UNSUPPORTED, SamplingFields

T = TypeVar("T")
N = TypeVar("N", int, float, int | None)

MAX_CHOICES = 128
MIN_REPETITION_PENALTY = 1e-6  # it divides logits, which must stay finite in float32
MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIASES = 1024
MAX_CACHE_SALT_CHARS = 256


class ModelLimits(msgspec.Struct, frozen=True):
    """What the engine can hold: tokens of context, tokens of prompt, size of the vocabulary."""

    max_model_len: int
    max_prompt_len: int
    vocab_size: int


def sampling_params(
    fields: SamplingFields,
    *,
    max_tokens: int | None,
    max_tokens_field: str,
    default_max_tokens: int | None,
    logprobs: int | None,
    limits: ModelLimits,
) -> SamplingParams:
    """Judge everything that does not depend on the prompt. `default_max_tokens` None: as far as the context goes.

    `max_tokens` beyond the whole context is an error; beyond what the prompt leaves of it is clipped (fit_context).
    """
    refuse_unsupported(fields)
    most = limits.max_model_len
    count = default_max_tokens if max_tokens is None else max_tokens
    max_tokens = min(count, most) if max_tokens is None and count is not None else count
    max_tokens = most if max_tokens is None else _in_range(max_tokens_field, max_tokens, low=1, high=most)
    seed = _in_range("seed", fields.seed, low=-(1 << 63), high=(1 << 63) - 1)
    sampling = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=_in_range("min_tokens", _or(fields.min_tokens, 0), low=0, high=max_tokens),
        n=_in_range("n", _or(fields.n, 1), low=1, high=MAX_CHOICES),
        temperature=_in_range("temperature", _or(fields.temperature, 1.0), low=0.0, high=2.0),
        top_k=_top_k(_or(fields.top_k, 0), limits),
        top_p=_top_p(_or(fields.top_p, 1.0)),
        min_p=_in_range("min_p", _or(fields.min_p, 0.0), low=0.0, high=1.0),
        repetition_penalty=_in_range(
            "repetition_penalty", _or(fields.repetition_penalty, 1.0), low=MIN_REPETITION_PENALTY, high=10.0
        ),
        presence_penalty=_in_range("presence_penalty", _or(fields.presence_penalty, 0.0), low=-2.0, high=2.0),
        frequency_penalty=_in_range("frequency_penalty", _or(fields.frequency_penalty, 0.0), low=-2.0, high=2.0),
        logit_bias=_logit_bias(fields.logit_bias or {}, limits),
        seed=None if seed is None else seed % (1 << 63),
        stop=(fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ()),
        stop_token_ids=_stop_token_ids(fields.stop_token_ids or [], limits),
        ignore_eos=_or(fields.ignore_eos, False),
        logprobs=logprobs,
        skip_special_tokens=_or(fields.skip_special_tokens, True),
        include_stop_str_in_output=_or(fields.include_stop_str_in_output, False),
    )
    named = read_constraint(fields)
    return sampling if named is None else constrained(sampling, named.constraint, field=named.field)


def refuse_unsupported(fields: msgspec.Struct) -> None:
    """Raise Unsupported for a field that asks for what this server cannot do."""
    for name in fields.__struct_fields__:
        if name in UNSUPPORTED and getattr(fields, name) not in (None, False, "", [], {}):
            raise Unsupported(f"{name}: {UNSUPPORTED[name]}", field=name)
    match fields:
        case SamplingFields(stream_options=options, stream=stream) if options is not None and not stream:
            raise InvalidRequest("stream_options: only allowed with stream", field="stream_options")


def fit_context(sampling: SamplingParams, *, num_prompt_tokens: int, limits: ModelLimits, field: str) -> SamplingParams:
    """Clip `max_tokens` to what the prompt leaves of the context. Raises when the prompt is empty or too long."""
    if num_prompt_tokens == 0:
        raise InvalidRequest(f"{field}: empty; send at least one token of text", field=field)
    if num_prompt_tokens > limits.max_prompt_len:
        raise ContextLengthExceeded(
            f"{field}: {num_prompt_tokens} tokens, but this model takes at most {limits.max_prompt_len} "
            f"(its context is {limits.max_model_len}); shorten it",
            field=field,
        )
    room = max(1, limits.max_model_len - num_prompt_tokens)
    if sampling.max_tokens <= room:
        return sampling
    return msgspec.structs.replace(sampling, max_tokens=room, min_tokens=min(sampling.min_tokens, room))


def check_token_ids(tokens: list[int], *, field: str, limits: ModelLimits) -> None:
    """Raise InvalidRequest for an id that is not in the vocabulary."""
    if tokens and (min(tokens) < 0 or max(tokens) >= limits.vocab_size):
        index, token = next((i, t) for i, t in enumerate(tokens) if not 0 <= t < limits.vocab_size)
        message = f"{field}[{index}]: token id {token} is not in the vocabulary (0 to {limits.vocab_size - 1})"
        raise InvalidRequest(message, field=field)


def cache_namespace(fields: SamplingFields) -> str:
    """The salt under which this request shares its cached prefix."""
    salt = fields.cache_salt or ""
    if len(salt) > MAX_CACHE_SALT_CHARS:
        raise InvalidRequest(f"cache_salt: at most {MAX_CACHE_SALT_CHARS} characters", field="cache_salt")
    return salt


def request_priority(fields: SamplingFields) -> int:
    """Higher goes first under the priority policy."""
    return _in_range("priority", _or(fields.priority, 0), low=-(1 << 31), high=(1 << 31) - 1)


def num_logprobs(count: int | None, *, field: str) -> int | None:
    """How many alternatives a token reports."""
    return _in_range(field, count, low=0, high=MAX_LOGPROBS)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _in_range(field: str, value: N, *, low: float, high: float) -> N:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{field}: must be between {low} and {high}, not {_shown(value)}", field=field)
    return value


def _shown(value: float) -> str:
    return "a number of more than 64 bits" if isinstance(value, int) and abs(value) > 1 << 64 else str(value)


def _top_k(top_k: int, limits: ModelLimits) -> int:
    """-1 and 0 are off, as elsewhere in the field; more than the vocabulary is the vocabulary."""
    if top_k < -1:
        raise InvalidRequest(f"top_k: must be -1 or 0 (off), or at least 1, not {_shown(top_k)}", field="top_k")
    return min(max(top_k, 0), limits.vocab_size)


def _top_p(top_p: float) -> float:
    if not 0.0 < top_p <= 1.0:
        raise InvalidRequest(f"top_p: must be above 0 and at most 1, not {top_p}", field="top_p")
    return top_p


def _stop_token_ids(tokens: list[int], limits: ModelLimits) -> tuple[int, ...]:
    if len(tokens) > MAX_STOP_TOKEN_IDS:
        message = f"stop_token_ids: at most {MAX_STOP_TOKEN_IDS}, not {len(tokens)}"
        raise InvalidRequest(message, field="stop_token_ids")
    check_token_ids(tokens, field="stop_token_ids", limits=limits)
    return tuple(dict.fromkeys(tokens))


def _logit_bias(biases: Mapping[str, Any], limits: ModelLimits) -> dict[int, float]:
    """Token id (a decimal string, JSON has no other keys) to what is added to its logit, -100 to 100."""
    if len(biases) > MAX_LOGIT_BIASES:
        raise InvalidRequest(f"logit_bias: at most {MAX_LOGIT_BIASES} tokens, not {len(biases)}", field="logit_bias")
    result: dict[int, float] = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < limits.vocab_size):
            message = f"logit_bias: {key[:40]!r} is not a token id of this model (0 to {limits.vocab_size - 1})"
            raise InvalidRequest(message, field="logit_bias")
        result[int(key)] = _in_range("logit_bias", bias, low=-100.0, high=100.0)
    return result
