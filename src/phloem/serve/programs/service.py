"""Programs over HTTP: from a request to a run beside the scheduler, read whole or as events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing

import msgspec

from phloem.lang.engine import Usage
from phloem.lang.events import Delta, Event, ProgramResult
from phloem.lang.functions import BUILT_IN, Functions
from phloem.lang.limits import ProgramLimits
from phloem.lang.passes.pipeline import ALL_PASSES
from phloem.lang.prepare import Prepared, RunOptions, prepare
from phloem.lang.run import Run, stream
from phloem.serve.openai.backend import Backend
from phloem.serve.openai.generation import Generation, Observer
from phloem.serve.programs.engine import MAX_REMEMBERED_CHARS, TokenEngine, TokenState
from phloem.serve.programs.pages import PromisedPages
from phloem.serve.programs.turns import TurnPieces
from phloem.serve.programs.wire import ProgramRequest, ProgramResponse

MAX_PARALLEL = 256
"""Requests of one program under way at once, unless fewer rows run: what does not run waits in the engine."""
SERVER_LIMITS = ProgramLimits(
    max_iterations=256,
    max_executed_nodes=10_000,
    max_requests=1_000,
    max_value_chars=200_000,
    max_text_chars=2_000_000,
    max_total_tokens=100_000,
    wall_time_s=300.0,
)


MAX_REMEMBERED_BYTES = 1 << 20
"""Of programs, as JSON: they are remembered as they were prepared."""

_encode = msgspec.json.Encoder().encode


class ProgramSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows: limits, and the functions that Call may reach. `max_parallel` requests of one program
    are under way at once; memory comes in pages of `tokens_per_page`."""

    limits: ProgramLimits = SERVER_LIMITS
    functions: Functions = msgspec.field(default_factory=lambda: BUILT_IN)
    max_parallel: int = MAX_PARALLEL
    tokens_per_page: int = 32


class ProgramService:
    """Judges programs and makes their runs. A program that comes again is not judged and rewritten again."""

    def __init__(self, *, backend: Backend, settings: ProgramSettings) -> None:
        self._settings = settings
        self._turns = TurnPieces(backend.chat_template)
        self._tokenizer = backend.tokenizer
        self._pages = PromisedPages()
        self._remembered: dict[bytes, Prepared] = {}  # the one used last is the last

    def num_places(self, request: ProgramRequest) -> int:
        """Places in the queue: one for each request that it may have under way at once."""
        return min(self._prepared(request).bounds.max_parallel, self._settings.max_parallel)

    async def prepare(
        self, request: ProgramRequest, *, request_id: str, backend: Backend, observer: Observer
    ) -> ProgramAnswer:
        """The run, ready to be read. ProgramError, LimitExceeded and UnknownModel before anything is submitted."""
        name = backend.check_model(request.model)
        engine = TokenEngine(
            requests=backend.client,
            tokenizer=backend.tokenizer,
            turns=self._turns,
            limits=backend.limits,
            run_id=request_id,
            max_parallel=self._settings.max_parallel,
            tokens_per_page=self._settings.tokens_per_page,
            namespace=request.cache_salt,
            priority=request.priority,
            check_constraint=lambda constraint, place: backend.constraints.check(constraint, field=place),
        )
        prepared = self._prepared(request)
        stats = backend.client.stats()
        promise = self._pages.promise(
            prepared.bounds.min_pages(self._settings.tokens_per_page), num_pages=stats.pages_total if stats else None
        )
        return ProgramAnswer(
            request, prepared, engine=engine, promise=promise, request_id=request_id, model=name, observer=observer
        )

    def _prepared(self, request: ProgramRequest) -> Prepared:
        key = _encode((request.program, request.passes, request.limits))
        prepared = self._remembered.pop(key, None) or self._prepare(request)
        self._remembered[key] = prepared
        while len(self._remembered) > 1 and sum(map(len, self._remembered)) > MAX_REMEMBERED_BYTES:
            del self._remembered[next(iter(self._remembered))]
        return prepared

    def _prepare(self, request: ProgramRequest) -> Prepared:
        limits = self._settings.limits
        if request.limits is not None:
            limits = limits.tightened(request.limits)
        passes = ALL_PASSES if request.passes is None else request.passes
        options = RunOptions(passes=passes, limits=limits, functions=self._settings.functions)
        return prepare(request.program, options, count=self._count)

    def _count(self, text: str) -> int:
        """Tokens of a constant text: exactly, or at least where counting takes long."""
        if len(text) > MAX_REMEMBERED_CHARS:
            return self._tokenizer.least_tokens(text)
        return len(self._tokenizer.encode(text, field="program"))


class ProgramAnswer:
    """An accepted program, read once. Closing its chunks early, or cancelling, frees everything."""

    generations: Sequence[Generation] = ()

    def __init__(
        self,
        request: ProgramRequest,
        prepared: Prepared,
        *,
        engine: TokenEngine,
        promise: AbstractContextManager[None],
        request_id: str,
        model: str,
        observer: Observer,
    ) -> None:
        self.is_stream = request.stream
        self._request, self._prepared, self._engine = request, prepared, engine
        self._promise = promise
        self._request_id, self._model, self._observer = request_id, model, observer
        self._has_spoken = False

    async def chunks(self) -> AsyncGenerator[Event, None]:
        """Text as it is produced, variables as they get their values, the result at last."""

        def make(emit: Callable[[Event], None]) -> Run[TokenState]:
            return self._prepared.run(self._engine, seed=self._request.seed, emit=emit)

        with self._promise:
            async with aclosing(stream(make, self._request.arguments)) as events:
                async for event in events:
                    self._observe(event)
                    yield event

    async def whole(self) -> ProgramResponse:
        """The result only."""
        run = self._prepared.run(self._engine, seed=self._request.seed, emit=self._observe)
        with self._promise:
            result = await run.execute(self._request.arguments)
        return ProgramResponse(
            id=self._request_id,
            created=int(time.time()),
            model=self._model,
            variables=result.variables,
            text=result.text,
            usage=result.usage,
        )

    def _observe(self, event: Event) -> None:
        if isinstance(event, Delta) and not self._has_spoken:
            self._has_spoken = True
            self._observer.generated(0)  # the time of the first token
        if isinstance(event, ProgramResult):
            self._note_usage(event.usage)

    def _note_usage(self, usage: Usage) -> None:
        self._observer.accepted(num_prompt_tokens=usage.prompt_tokens)
        self._observer.cached(usage.prompt_tokens - usage.computed_tokens)
        self._observer.generated(usage.generated_tokens)
        self._observer.choice_finished("stop")
