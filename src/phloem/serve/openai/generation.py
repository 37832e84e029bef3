"""From engine events to text: one Generation per prompt, its choices' detokenizers, and the usage that is billed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal, Protocol

import msgspec

from phloem.core import wire
from phloem.core.request import SamplingParams, TokenLogprob
from phloem.serve.client import EngineClient
from phloem.serve.openai.errors import failure_of
from phloem.serve.openai.responses import FinishReason, PromptTokensDetails, Usage
from phloem.serve.text.detokenizer import Detokenizer
from phloem.serve.text.stop import StopStrings
from phloem.serve.text.tokenizer import Tokenizer


class Observer(Protocol):
    """Told what happens to a request; the metrics and the access line listen."""

    def accepted(self, *, num_prompt_tokens: int) -> None:
        """The request is valid and goes to the engine."""

    def generated(self, num_tokens: int) -> None:
        """New tokens of one choice arrived."""

    def cached(self, num_tokens: int) -> None:
        """So many prompt tokens came from the prefix cache."""

    def choice_finished(self, reason: FinishReason) -> None:
        """One choice is complete."""


class Delta(msgspec.Struct, frozen=True):
    """What is new of one choice. `index` counts choices over all prompts of the request; `prompt_logprobs` come with a
    choice's first delta, when they were asked for."""

    index: int
    text: str
    logprobs: Sequence[TokenLogprob] = ()
    prompt_logprobs: Sequence[TokenLogprob] = ()
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    is_first: bool = False


class Choice:
    """The text side of one choice: says what its new tokens add, and when its text is over."""

    def __init__(self, *, index: int, detokenizer: Detokenizer, include_stop: bool) -> None:
        self.index = index
        self.has_started = False
        self.is_finished = False
        self._detokenizer = detokenizer
        self._include_stop = include_stop

    def advance(self, event: wire.Tokens) -> tuple[str, FinishReason | None, str | int | None]:
        """(new text, finish reason, what stopped it)."""
        hides_last = event.stop_token is not None and not self._include_stop
        delta = self._detokenizer.push(event.token_ids[:-1] if hides_last else event.token_ids)
        text, stop, finish = delta.text, delta.stop, event.finish
        if stop is None and finish is not None:
            rest = self._detokenizer.flush()
            text, stop = text + rest.text, rest.stop
        self.has_started = True
        self.is_finished = stop is not None or finish is not None
        if stop is not None:
            return text, "stop", stop
        return text, _finish_reason(finish), event.stop_token


class Generation:
    """One prompt's request to the engine, as deltas of its choices."""

    def __init__(
        self,
        *,
        submit: wire.Submit,
        first_index: int,
        client: EngineClient,
        tokenizer: Tokenizer,
        stops: StopStrings,
        observer: Observer,
        prompt_only: bool = False,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        sampling = submit.sampling
        self.submit = submit
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0
        self._client = client
        self._observer = observer
        self._prompt_only = prompt_only  # the engine generates at least one token; nobody wants it
        self._prompt_logprobs: list[TokenLogprob] = []
        self._choices = [
            Choice(
                index=first_index + choice,
                include_stop=sampling.include_stop_str_in_output,
                detokenizer=Detokenizer(
                    tokenizer,
                    stops=stops,
                    skip_special=sampling.skip_special_tokens,
                    shown_ids=shown_ids,
                    include_stop=sampling.include_stop_str_in_output,
                    min_tokens=sampling.min_tokens,
                ),
            )
            for choice in range(sampling.n)
        ]

    def compute_prompt_at(self, address: str) -> None:
        """Let the replica at `address` (host:port) compute the prompt."""
        self.submit = msgspec.structs.replace(self.submit, kv_from=address)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Until every choice is finished. Raises what the engine failed with. Closing it aborts the request."""
        async with aclosing(self._client.generate(self.submit)) as events:
            async for event in events:
                match event:
                    case wire.Tokens():
                        for part in parts_of(event, self.submit.sampling):
                            if (delta := self._advance(part)) is not None:
                                yield delta
                    case wire.Finished():
                        self.num_cached_tokens = event.num_cached_tokens
                        self._observer.cached(event.num_cached_tokens)
                    case wire.Failed():
                        raise failure_of(event)

    def _advance(self, event: wire.Tokens) -> Delta | None:
        choice = self._choices[event.choice]
        self._prompt_logprobs.extend(event.prompt_logprobs)
        if choice.is_finished or not (event.token_ids or event.finish):
            return None
        is_first = not choice.has_started
        text, finish, stop_reason = choice.advance(event)
        logprobs: Sequence[TokenLogprob] = event.logprobs
        if self._prompt_only:
            text, finish, stop_reason, logprobs = "", "length", None, ()
        else:
            self.num_generated_tokens += len(event.token_ids)
            self._observer.generated(len(event.token_ids))
        if finish is not None:
            self._observer.choice_finished(finish)
        if finish is not None and event.finish is None:
            self._client.stop_choice(self.submit.request_id, event.choice)
        prompt_logprobs = self._prompt_logprobs if is_first else ()
        return Delta(choice.index, text, logprobs, prompt_logprobs, finish, stop_reason, is_first)


def parts_of(event: wire.Tokens, sampling: SamplingParams) -> Sequence[wire.Tokens]:
    """The event token by token where a stop string may end the text among them: what follows is not the answer's."""
    ids = event.token_ids
    if len(ids) < 2 or not sampling.stop:
        return (event,)
    last = len(ids) - 1
    return [
        msgspec.structs.replace(
            event,
            token_ids=(token,),
            logprobs=event.logprobs[index : index + 1],
            prompt_logprobs=event.prompt_logprobs if index == 0 else (),
            finish=event.finish if index == last else None,
            stop_token=event.stop_token if index == last else None,
        )
        for index, token in enumerate(ids)
    ]


def usage_of(generations: Sequence[Generation]) -> Usage:
    """Counts over all prompts; complete once their deltas ended."""
    prompt = sum(len(generation.submit.prompt) for generation in generations)
    completion = sum(generation.num_generated_tokens for generation in generations)
    cached = sum(generation.num_cached_tokens for generation in generations)
    return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))


async def merged(generations: Sequence[Generation]) -> AsyncGenerator[Delta, None]:
    """The deltas of all, as they come. The first failure ends, and aborts, the others."""
    if len(generations) == 1:
        async with aclosing(generations[0].deltas()) as deltas:
            async for delta in deltas:
                yield delta
        return
    queue: asyncio.Queue[Delta | asyncio.Task[None]] = asyncio.Queue()

    async def pump(generation: Generation) -> None:
        async with aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                queue.put_nowait(delta)

    tasks = [asyncio.create_task(pump(generation)) for generation in generations]
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    try:
        num_open = len(tasks)
        while num_open:
            item = await queue.get()
            if isinstance(item, Delta):
                yield item
            else:
                item.result()
                num_open -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _finish_reason(reason: str | None) -> Literal["stop", "length"] | None:
    match reason:
        case None | "stop" | "length":
            return reason
        case _:
            raise AssertionError(f"the engine finished a choice with {reason!r}")
