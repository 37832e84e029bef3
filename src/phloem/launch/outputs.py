"""What `LLM.generate` returns, and the request while it is on its way there."""

from __future__ import annotations

import msgspec

from phloem.core import wire
from phloem.core.request import SamplingParams, TokenLogprob
from phloem.serve.openai.generation import Choice, parts_of
from phloem.serve.text.detokenizer import Detokenizer
from phloem.serve.text.stop import StopStrings
from phloem.serve.text.tokenizer import Tokenizer


class CompletionOutput(msgspec.Struct, frozen=True):
    """One choice. `finish_reason` is "stop" or "length"; `stop_reason` the stop string or token id that ended it;
    `logprobs` one entry a token when they were asked for."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request; `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class RequestOutput(msgspec.Struct, frozen=True):
    """What became of one prompt. `prompt` is None when token ids were given."""

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.outputs[0].text


class OpenRequest:
    """One prompt while the engine works on it: collects tokens and text of each choice."""

    def __init__(
        self, *, request_id: str, prompt: tuple[int, ...], sampling: SamplingParams, tokenizer: Tokenizer
    ) -> None:
        self.request_id = request_id
        self.num_generated = 0
        self._prompt, self._sampling = prompt, sampling
        self._prompt_logprobs: list[TokenLogprob] = []
        self._finished: wire.Finished | None = None
        stops = StopStrings(sampling.stop) if sampling.stop else None
        self._choices = [OpenChoice(number, sampling, tokenizer, stops) for number in range(sampling.n)]

    @property
    def is_done(self) -> bool:
        """Whether the engine has said its last word about it."""
        return self._finished is not None

    def submit(self) -> wire.Submit:
        """The request as the engine gets it."""
        return wire.Submit(request_id=self.request_id, prompt=self._prompt, sampling=self._sampling)

    def advance(self, event: wire.Tokens) -> tuple[str, bool]:
        """(new text of that choice, whether a stop string has just ended it)."""
        self._prompt_logprobs.extend(event.prompt_logprobs)
        choice = self._choices[event.choice]
        texts, has_stopped = [], False
        for part in parts_of(event, self._sampling):
            if choice.is_finished:
                break
            self.num_generated += len(part.token_ids)
            text, has_stopped = choice.advance(part)
            texts.append(text)
        return "".join(texts), has_stopped

    def finish(self, event: wire.Finished) -> None:
        """The engine is done."""
        self._finished = event

    def output(self, *, prompt: str | None) -> RequestOutput:
        """What became of it; `prompt` is its text where it had one."""
        assert self._finished is not None
        usage = Usage(
            prompt_tokens=len(self._prompt),
            completion_tokens=self.num_generated,
            cached_tokens=self._finished.num_cached_tokens,
        )
        return RequestOutput(
            prompt=prompt,
            prompt_token_ids=self._prompt,
            outputs=tuple(choice.output() for choice in self._choices),
            usage=usage,
            prompt_logprobs=None if self._sampling.prompt_logprobs is None else tuple(self._prompt_logprobs),
        )


class OpenChoice:
    """One choice while it grows."""

    def __init__(self, index: int, sampling: SamplingParams, tokenizer: Tokenizer, stops: StopStrings | None) -> None:
        detokenizer = Detokenizer(
            tokenizer,
            stops=stops,
            skip_special=sampling.skip_special_tokens,
            include_stop=sampling.include_stop_str_in_output,
            min_tokens=sampling.min_tokens,
        )
        self._choice = Choice(index=index, detokenizer=detokenizer, include_stop=sampling.include_stop_str_in_output)
        self._wants_logprobs = sampling.logprobs is not None
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish: tuple[str, str | int | None] = ("", None)

    @property
    def is_finished(self) -> bool:
        """Whether its text is over; the engine may still send tokens it had under way."""
        return self._choice.is_finished

    def advance(self, event: wire.Tokens) -> tuple[str, bool]:
        """(new text, whether a stop string has just ended it)."""
        text, finish, stop_reason = self._choice.advance(event)
        self._text.append(text)
        self._token_ids.extend(event.token_ids)
        self._logprobs.extend(event.logprobs)
        if finish is not None:
            self._finish = (finish, stop_reason)
        return text, finish is not None and event.finish is None

    def output(self) -> CompletionOutput:
        """The choice, complete."""
        reason, stop_reason = self._finish
        return CompletionOutput(
            index=self._choice.index,
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            finish_reason=reason,
            stop_reason=stop_reason,
            logprobs=tuple(self._logprobs) if self._wants_logprobs else None,
        )
