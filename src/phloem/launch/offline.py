"""`LLM`: a model in this process. It holds a loop and is not one: requests go into its inbox, events come out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, cast

import msgspec

from phloem.core import wire
from phloem.core.errors import EngineDead, InvalidRequest
from phloem.core.request import Constraint, SamplingParams
from phloem.core.resolve import resolve
from phloem.lang.events import Event, ProgramResult
from phloem.lang.prepare import AnyProgram, RunOptions
from phloem.launch import models
from phloem.launch.constraints import ConstraintTrials
from phloem.launch.inprocess import IDLE_WAIT_S, InProcessRequests
from phloem.launch.interrupt import deferred_interrupt
from phloem.launch.outputs import OpenRequest, RequestOutput
from phloem.launch.programs import ProgramRunner
from phloem.launch.progress import Progress
from phloem.launch.stages import Stages
from phloem.launch.text import load_text_of
from phloem.launch.wiring import build_engine
from phloem.runtime.mailbox import Mailbox
from phloem.serve.openai.constraints import constrained
from phloem.serve.openai.errors import failure_of
from phloem.serve.openai.params import ModelLimits, check_token_ids, fit_context, num_logprobs, sampling_params
from phloem.serve.openai.requests import SamplingFields
from phloem.serve.programs.service import MAX_PARALLEL

"""For a request whose grammar is being compiled, when nothing else is to be done."""

DEFAULT_OPTIONS = RunOptions()

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


class Piece(msgspec.Struct, frozen=True):
    """What one event added to a request."""

    text: str = ""
    num_tokens: int = 0
    is_last: bool = False


class LLM:
    """A model, ready to generate.

    `model` is what `phloem serve --model` takes; `options` are the fields of core.config.Config, by name. Raises
    ConfigError for an unknown or wrong option and ModelError for a model that cannot be used.

        with LLM() as llm:
            print(llm.generate("The capital of France is", SamplingParams(temperature=0))[0].text)
    """

    def __init__(self, model: str | os.PathLike[str] = "default", **options: Any) -> None:
        named = os.fspath(model) if isinstance(model, os.PathLike) else model
        config = resolve(flags={"model": named, **options}).config
        location = models.locate(config.model)
        self.name = config.served_model_name or location.name
        self.stages = Stages()
        self._commands: Mailbox[wire.Command] = Mailbox()
        self._events: Mailbox[wire.Event] = Mailbox()
        with self.stages.stage("load tokenizer"):
            self._text = load_text_of(location, chat_template=config.chat_template)
        self._constraints = ConstraintTrials(self._text.tokenizer)
        source = location.path if location.path is not None else location.name
        self._engine = build_engine(
            config=config, source=source, inbox=self._commands, outbox=self._events, stages=self.stages
        )
        ready = self._engine.ready(name=self.name, stages=self.stages.finished())
        self.max_model_len = ready.max_model_len
        self.memory = ready.memory
        self.vocab_size = ready.vocab_size
        self._limits = ModelLimits(
            max_model_len=ready.max_model_len, max_prompt_len=ready.max_prompt_len, vocab_size=ready.vocab_size
        )
        self._numbers = itertools.count()
        self._programs = ProgramRunner(
            requests=self._program_requests,
            text=self._text,
            limits=self._limits,
            max_parallel=config.max_running or MAX_PARALLEL,
            tokens_per_page=config.page_size,
            check_constraint=lambda constraint, place: self._constraints.check(constraint, field=place),
        )
        self._stats: wire.Stats | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory. The object cannot be used afterwards; closing twice is harmless."""
        if not self._is_closed:
            self._is_closed = True
            self._constraints.close()
            self._engine.close()

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Complete every prompt (a text, a list of texts, token ids, or a list of token ids); outputs in that order.

        `params` is one for all or one each (default: SamplingParams()). InvalidRequest names the prompt at fault; then
        nothing is generated.
        """
        texts = _as_list(prompts)
        encoded = [self._encode(prompt, field=f"prompts[{index}]") for index, prompt in enumerate(texts)]
        requests = self._open(encoded, params)
        with Progress(total=len(requests), is_shown=progress) as bar:
            for piece in self._run(requests):
                bar.advance(num_tokens=piece.num_tokens, num_requests=int(piece.is_last))
        given = [prompt if isinstance(prompt, str) else None for prompt in texts]
        return [request.output(prompt=prompt) for request, prompt in zip(requests, given)]

    def chat(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of several, rendered with the model's chat template."""
        is_single = bool(messages) and isinstance(messages[0], dict)
        conversations = cast(Sequence[Sequence[dict[str, Any]]], [messages] if is_single else messages)
        encoded = [self._text.chat.encode(list(conversation)) for conversation in conversations]
        return self.generate(encoded, params, progress=progress)

    def run(self, program: AnyProgram, /, options: RunOptions = DEFAULT_OPTIONS, **arguments: Any) -> ProgramResult:
        """Run a program (`@program`, its IR or its JSON) with these arguments. ProgramError names what is wrong."""
        return self._programs.run(program, arguments, options)

    def run_batch(
        self,
        program: AnyProgram,
        arguments: Sequence[Mapping[str, Any]],
        options: RunOptions = DEFAULT_OPTIONS,
    ) -> list[ProgramResult]:
        """Run a program once for each of `arguments`, all at once; results in that order."""
        return self._programs.run_batch(program, arguments, options)

    def run_stream(
        self, program: AnyProgram, /, options: RunOptions = DEFAULT_OPTIONS, **arguments: Any
    ) -> Iterator[Event]:
        """Run a program: its variables as they are produced, its ProgramResult at last. Closing early frees all."""
        return self._programs.stream(program, arguments, options)

    def stats(self) -> wire.Stats | None:
        """The engine's counters as of its last idle moment; None before the first request."""
        return self._stats

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Iterator[str]:
        """The text of one completion, piece by piece. Closing the iterator early frees the request."""
        requests = self._open([self._encode(prompt, field="prompt")], params)
        for piece in self._run(requests):
            if piece.text:
                yield piece.text

    def stream_chat(self, messages: Sequence[dict[str, Any]], params: SamplingParams | None = None) -> Iterator[str]:
        """The answer to one conversation, piece by piece."""
        return self.stream(self._text.chat.encode(list(messages)), params)

    def _encode(self, prompt: str | Sequence[int], *, field: str) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self._text.tokenizer.encode(prompt, field=field))
        try:
            tokens = msgspec.convert(prompt, list[int])
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"{field}: give a text or a list of token ids ({error})", field=field) from error
        check_token_ids(tokens, field=field, limits=self._limits)
        return tuple(tokens)

    def _open(
        self, prompts: Sequence[tuple[int, ...]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[OpenRequest]:
        """Check everything before anything is submitted."""
        if self._is_closed:
            raise EngineDead("this LLM was closed; make a new one")
        if not (params is None or isinstance(params, SamplingParams | Sequence)):
            raise InvalidRequest(f"params: SamplingParams are wanted, not {type(params).__name__}", field="params")
        each = (
            [params or SamplingParams()] * len(prompts)
            if params is None or isinstance(params, SamplingParams)
            else params
        )
        if len(each) != len(prompts):
            raise InvalidRequest(
                f"params: {len(each)} for {len(prompts)} prompts; give one, or one each", field="params"
            )
        requests = []
        for index, (prompt, given) in enumerate(zip(prompts, each)):
            checked = fit_context(
                check_params(given, self._limits),
                num_prompt_tokens=len(prompt),
                limits=self._limits,
                field=f"prompts[{index}]",
            )
            if checked.constraint is not None:
                self._constraints.check_now(checked.constraint, field="constraint")
            request_id = f"offline-{next(self._numbers)}"
            requests.append(
                OpenRequest(request_id=request_id, prompt=prompt, sampling=checked, tokenizer=self._text.tokenizer)
            )
        return requests

    def _run(self, requests: Sequence[OpenRequest]) -> Iterator[Piece]:
        """Submit all, step until all are done, yield what is new as it comes. Whoever stops listening, or an
        error of one request, frees the others."""
        still_open = {request.request_id: request for request in requests}
        self._commands.send([request.submit() for request in requests])
        try:
            while still_open:
                self._turn()
                for event in self._events.poll(0.0):
                    yield from self._route(event, still_open)
        finally:
            if still_open:
                self._abandon(list(still_open))

    def _route(self, event: wire.Event, still_open: dict[str, OpenRequest]) -> Iterator[Piece]:
        match event:
            case wire.Tokens() if (request := still_open.get(event.request_id)) is not None:
                text, stopped = request.advance(event)
                if stopped:
                    self._commands.send([wire.Stop(event.request_id, event.choice)])
                yield Piece(text=text, num_tokens=len(event.token_ids))
            case wire.Finished() if (request := still_open.pop(event.request_id, None)) is not None:
                request.finish(event)
                yield Piece(is_last=True)
            case wire.Failed() if still_open.pop(event.request_id, None) is not None:
                raise failure_of(event)
            case wire.Stats():
                self._stats = event
            case _:
                pass

    def _program_requests(self) -> InProcessRequests:
        if self._is_closed:
            raise EngineDead("this LLM was closed; make a new one")
        return InProcessRequests(
            send=self._commands.send,
            poll=lambda: self._events.poll(0.0),
            turn=self._turn,
            on_stats=self._note_stats,
        )

    def _note_stats(self, stats: wire.Stats) -> None:
        self._stats = stats

    def _turn(self, wait_s: float = IDLE_WAIT_S) -> bool:
        with deferred_interrupt():
            return self._engine.loop.turn(wait_s)

    def _abandon(self, request_ids: Sequence[str]) -> None:
        self._commands.send([wire.Abort(request_id) for request_id in request_ids])
        waiting = set(request_ids)
        while waiting:
            self._turn()
            for event in self._events.poll(0.0):
                if isinstance(event, wire.Finished | wire.Failed):
                    waiting.discard(event.request_id)


def check_params(params: SamplingParams, limits: ModelLimits) -> SamplingParams:
    """The same judgement that a request over HTTP gets. InvalidRequest names the field."""
    if not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params: SamplingParams are wanted, not {type(params).__name__}", field="params")
    try:
        values = msgspec.to_builtins(params, str_keys=True)
        fields = msgspec.convert({name: values[name] for name in values if name in _SHARED_FIELDS}, SamplingFields)
        counts = msgspec.convert({name: values[name] for name in values if name in _COUNTS}, _Counts)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidRequest(f"params: {error}", field="params") from error
    checked = sampling_params(
        fields,
        max_tokens=counts.max_tokens,
        max_tokens_field="max_tokens",
        default_max_tokens=None,
        logprobs=num_logprobs(counts.logprobs, field="logprobs"),
        limits=limits,
    )
    prompt_logprobs = num_logprobs(counts.prompt_logprobs, field="prompt_logprobs")
    checked = msgspec.structs.replace(checked, prompt_logprobs=prompt_logprobs)
    constraint = params.constraint
    if constraint is None:
        return checked
    if not isinstance(constraint, Constraint):
        raise InvalidRequest(f"constraint: a Constraint is wanted, not {type(constraint).__name__}", field="constraint")
    return constrained(checked, constraint, field="constraint")


class _Counts(msgspec.Struct, frozen=True):
    max_tokens: int = SamplingParams().max_tokens
    logprobs: int | None = None
    prompt_logprobs: int | None = None


_COUNTS = frozenset(_Counts.__struct_fields__)
_SHARED_FIELDS = frozenset(SamplingFields.__struct_fields__) & frozenset(SamplingParams.__struct_fields__)


def _as_list(prompts: Prompts) -> list[str | Sequence[int]]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise InvalidRequest("prompts: a text, token ids, or a list of either is wanted", field="prompts")
    if prompts and isinstance(prompts[0], int):
        return [cast(Sequence[int], prompts)]
    return list(cast(Sequence[str | Sequence[int]], prompts))
