"""POST /v1/completions: prompts in, texts out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
from msgspec import UNSET, UnsetType

from phloem.core import wire
from phloem.core.errors import InvalidRequest
from phloem.core.request import SamplingParams
from phloem.serve.openai import params
from phloem.serve.openai.backend import Backend
from phloem.serve.openai.errors import Unsupported
from phloem.serve.openai.generation import Delta, Generation, Observer, merged, usage_of
from phloem.serve.openai.logprobs import CompletionLogprobsWriter, joined
from phloem.serve.openai.requests import CompletionRequest
from phloem.serve.openai.responses import Completion, CompletionChoice, CompletionLogprobs, Usage
from phloem.serve.text.stop import StopStrings

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 1024

decoder = msgspec.json.Decoder(CompletionRequest)


async def prepare(request: CompletionRequest, *, request_id: str, backend: Backend, observer: Observer) -> Answer:
    """Judge and tokenize. Raises InvalidRequest and its kin; nothing has been submitted then."""
    backend.check_model(request.model)
    limits = backend.limits
    sampling = _sampling(request, limits)
    await backend.check_constraint(sampling, request)
    stops = StopStrings(sampling.stop)
    tokenized = await _tokenize(request, backend)
    priority, namespace = params.request_priority(request), params.cache_namespace(request)
    generations = []
    for number, tokens in enumerate(tokenized):
        fitted = params.fit_context(sampling, num_prompt_tokens=len(tokens), limits=limits, field="prompt")
        name = f"{request_id}-{number}" if len(tokenized) > 1 else request_id
        generations.append(
            Generation(
                submit=wire.Submit(name, tuple(tokens), fitted, priority=priority, namespace=namespace),
                first_index=number * sampling.n,
                client=backend.client,
                tokenizer=backend.tokenizer,
                stops=stops,
                observer=observer,
                prompt_only=request.max_tokens == 0,
            )
        )
    return Answer(request=request, request_id=request_id, generations=generations, backend=backend)


def _sampling(request: CompletionRequest, limits: params.ModelLimits) -> SamplingParams:
    echo = bool(request.echo)
    if request.best_of not in (None, request.n or 1):
        raise Unsupported("best_of: choosing the best of more than n is not supported; leave it out", field="best_of")
    logprobs = params.num_logprobs(request.logprobs, field="logprobs")
    sampling = params.sampling_params(
        request,
        max_tokens=1 if echo and request.max_tokens == 0 else request.max_tokens,
        max_tokens_field="max_tokens",
        default_max_tokens=DEFAULT_MAX_TOKENS,
        logprobs=logprobs,
        limits=limits,
    )
    return msgspec.structs.replace(sampling, prompt_logprobs=logprobs) if echo else sampling


def num_prompts(request: CompletionRequest) -> int:
    """How many requests to the engine it makes."""
    return len(split_prompts(request.prompt))


def split_prompts(prompt: str | Sequence[str | int | Sequence[int]]) -> list[str | list[int]]:
    """A text, texts, token ids, or lists of token ids, as a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt: empty; send text or token ids", field="prompt")
    texts = [item for item in prompt if isinstance(item, str)]
    ids = [item for item in prompt if isinstance(item, int)]
    lists = [list(item) for item in prompt if isinstance(item, list)]
    if len(ids) == len(prompt):
        return [ids]
    if len(texts) not in (0, len(prompt)) or len(lists) not in (0, len(prompt)):
        raise InvalidRequest("prompt: all texts, all token ids, or all lists of token ids; not a mix", field="prompt")
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt: at most {MAX_PROMPTS} prompts a request, not {len(prompt)}", field="prompt")
    return [*texts, *lists]


async def _tokenize(request: CompletionRequest, backend: Backend) -> list[list[int]]:
    prompts = split_prompts(request.prompt)
    encoded = await backend.encode_texts(
        [prompt for prompt in prompts if isinstance(prompt, str)],
        add_special=request.add_special_tokens is not False,
        allow_special=request.allow_special_tokens is True,
    )
    given = [prompt for prompt in prompts if isinstance(prompt, list)]
    for tokens in given:
        params.check_token_ids(tokens, field="prompt", limits=backend.limits)
    return encoded + given  # one of them is empty: prompts are not mixed


class Answer:
    """An accepted request: read it as chunks or whole, once."""

    def __init__(
        self, *, request: CompletionRequest, request_id: str, generations: Sequence[Generation], backend: Backend
    ) -> None:
        self.is_stream = bool(request.stream)
        self.generations = generations
        self._request = request
        self._id = request_id
        self._created = int(time.time())
        self._backend = backend
        self._num_choices = generations[0].submit.sampling.n
        self._writers: dict[int, CompletionLogprobsWriter] = {}

    async def chunks(self) -> AsyncGenerator[Completion, None]:
        """One chunk per piece of text, the last one with usage when that was asked for."""
        options = self._request.stream_options
        with_usage = options is not None and bool(options.include_usage)
        async with aclosing(merged(self.generations)) as deltas:
            async for delta in deltas:
                choice = self._choice(delta)
                if choice.text or choice.finish_reason or choice.logprobs:
                    yield self._completion([choice], usage=None if with_usage else UNSET)
        if with_usage:
            yield self._completion([], usage=usage_of(self.generations))

    async def whole(self) -> Completion:
        """The complete answer."""
        pieces: list[list[CompletionChoice]] = [[] for _ in range(len(self.generations) * self._num_choices)]
        async with aclosing(merged(self.generations)) as deltas:
            async for delta in deltas:
                pieces[delta.index].append(self._choice(delta))
        return self._completion([_whole_choice(choice) for choice in pieces], usage=usage_of(self.generations))

    def _choice(self, delta: Delta) -> CompletionChoice:
        echoes = bool(self._request.echo) and delta.is_first
        text = self._prompt_text(delta.index) + delta.text if echoes else delta.text
        logprobs = None if self._request.logprobs is None else self._logprobs(delta, echoes=echoes)
        return CompletionChoice(delta.index, text, logprobs, delta.finish, delta.stop_reason)

    def _logprobs(self, delta: Delta, *, echoes: bool) -> CompletionLogprobs:
        if (writer := self._writers.get(delta.index)) is None:
            top, token_bytes = self._request.logprobs or 0, self._backend.tokenizer.token_bytes
            writer = self._writers[delta.index] = CompletionLogprobsWriter(top=top, token_bytes=token_bytes)
        if not echoes:
            return writer.write(delta.logprobs)
        prompt = self.generations[delta.index // self._num_choices].submit.prompt
        return writer.write([*delta.prompt_logprobs, *delta.logprobs], first_token=prompt[0])

    def _prompt_text(self, index: int) -> str:
        number = index // self._num_choices
        prompt = split_prompts(self._request.prompt)[number]
        return prompt if isinstance(prompt, str) else self._backend.tokenizer.decode(prompt, skip_special=False)

    def _completion(self, choices: list[CompletionChoice], *, usage: Usage | UnsetType | None) -> Completion:
        return Completion(self._id, self._created, self._backend.model_name, choices, usage)


def _whole_choice(pieces: Sequence[CompletionChoice]) -> CompletionChoice:
    last = pieces[-1]
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return CompletionChoice(
        index=last.index,
        text="".join(piece.text for piece in pieces),
        logprobs=joined(logprobs) if logprobs else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )
