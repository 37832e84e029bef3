"""POST /v1/chat/completions: a conversation in, the next message out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import msgspec
from msgspec import UNSET, UnsetType

from phloem.core import wire
from phloem.core.errors import InvalidRequest
from phloem.core.request import TokenLogprob
from phloem.serve.openai import params
from phloem.serve.openai.backend import Backend
from phloem.serve.openai.constraints import read_constraint
from phloem.serve.openai.generation import Delta, Generation, Observer, usage_of
from phloem.serve.openai.logprobs import chat_logprobs
from phloem.serve.openai.reading import Reading
from phloem.serve.openai.requests import ChatRequest
from phloem.serve.openai.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    MessageDelta,
    Usage,
)
from phloem.serve.openai.tools import check_messages, plan_tools
from phloem.serve.openai.turns import Turn
from phloem.serve.text.stop import StopStrings

NOTHING = MessageDelta()

decoder = msgspec.json.Decoder(ChatRequest)


async def prepare(request: ChatRequest, *, request_id: str, backend: Backend, observer: Observer) -> Answer:
    """Judge and tokenize. Raises InvalidRequest and its kin; nothing has been submitted then."""
    backend.check_model(request.model)
    limits = backend.limits
    newer = request.max_completion_tokens is not None
    sampling = params.sampling_params(
        request,
        max_tokens=request.max_completion_tokens if newer else request.max_tokens,
        max_tokens_field="max_completion_tokens" if newer else "max_tokens",
        default_max_tokens=None,
        logprobs=_num_logprobs(request),
        limits=limits,
    )
    check_messages(request.messages)
    plan = plan_tools(request)
    tokens = await backend.encode_chat(
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        kwargs=request.chat_template_kwargs,
        functions=plan.functions,
    )
    reading = Reading.of(backend.formats, plan, tokenizer=backend.tokenizer, prompt=tokens)
    named = read_constraint(request)
    sampling = reading.constrain(sampling, field="tools" if named is None else named.field)
    try:
        await backend.check_constraint(sampling, request, field="tools")
    except InvalidRequest:
        await reading.blame(backend.constraints)
        raise
    sampling = params.fit_context(sampling, num_prompt_tokens=len(tokens), limits=limits, field="messages")
    submit = wire.Submit(
        request_id,
        tuple(tokens),
        sampling,
        priority=params.request_priority(request),
        namespace=params.cache_namespace(request),
    )
    generation = Generation(
        submit=submit,
        first_index=0,
        client=backend.client,
        tokenizer=backend.tokenizer,
        stops=StopStrings(sampling.stop),
        observer=observer,
        shown_ids=reading.shown_ids,
    )
    return Answer(request=request, generation=generation, backend=backend, reading=reading)


def _num_logprobs(request: ChatRequest) -> int | None:
    top = params.num_logprobs(request.top_logprobs, field="top_logprobs")
    if top and not request.logprobs:
        raise InvalidRequest("top_logprobs: only allowed with logprobs: true", field="top_logprobs")
    return (top or 0) if request.logprobs else None


class Answer:
    """An accepted request: read it as chunks or whole, once."""

    def __init__(self, *, request: ChatRequest, generation: Generation, backend: Backend, reading: Reading) -> None:
        self.is_stream = bool(request.stream)
        self.generations = [generation]
        self._request = request
        self._generation = generation
        self._backend = backend
        self._created = int(time.time())
        with_reasoning = request.include_reasoning is not False
        self._turns = [
            Turn(reading.parser(), format=reading.tools, with_reasoning=with_reasoning)
            for _ in range(generation.submit.sampling.n)
        ]

    async def chunks(self) -> AsyncGenerator[ChatChunk, None]:
        """Of each choice: the role, its message in pieces, its finish reason; at the end the usage if it was asked
        for."""
        options = self._request.stream_options
        with_usage = options is not None and bool(options.include_usage)
        usage = None if with_usage else UNSET
        async with aclosing(self._generation.deltas()) as deltas:
            async for delta in deltas:
                for choice in self._chunk_choices(delta):
                    yield self._chunk([choice], usage=usage)
        if with_usage:
            yield self._chunk([], usage=usage_of(self.generations))

    async def whole(self) -> ChatCompletion:
        """The complete answer."""
        logprobs: list[list[TokenLogprob]] = [[] for _ in self._turns]
        choices: list[ChatChoice] = []
        async with aclosing(self._generation.deltas()) as deltas:
            async for delta in deltas:
                index = delta.index
                turn = self._turns[index]
                turn.read(delta)
                logprobs[index].extend(delta.logprobs)
                if delta.finish is not None:
                    written, finish = self._logprobs(logprobs[index]), turn.finish_reason(delta.finish)
                    choices.append(ChatChoice(index, turn.message(), written, finish, delta.stop_reason))
        choices.sort(key=lambda choice: choice.index)
        name = self._backend.model_name
        return ChatCompletion(
            self._generation.submit.request_id, self._created, name, choices, usage_of(self.generations)
        )

    def _chunk_choices(self, delta: Delta) -> Iterator[ChatChunkChoice]:
        turn = self._turns[delta.index]
        if delta.is_first:
            yield ChatChunkChoice(delta.index, MessageDelta(role="assistant", content=""))
        message = turn.read(delta)
        if message != NOTHING:
            yield ChatChunkChoice(delta.index, message, self._logprobs(delta.logprobs))
        elif delta.logprobs and self._request.logprobs:
            yield ChatChunkChoice(delta.index, MessageDelta(content=""), self._logprobs(delta.logprobs))
        if delta.finish is not None:
            finish = turn.finish_reason(delta.finish)
            yield ChatChunkChoice(delta.index, NOTHING, None, finish, delta.stop_reason)

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        top = self._request.top_logprobs or 0
        return chat_logprobs(entries, top=top, token_bytes=self._backend.tokenizer.token_bytes)

    def _chunk(self, choices: list[ChatChunkChoice], *, usage: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(self._generation.submit.request_id, self._created, self._backend.model_name, choices, usage)
