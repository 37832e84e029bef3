"""Programs over HTTP: from a request to a run beside the scheduler, read whole or as events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

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
from phloem.serve.programs.engine import TokenEngine, TokenState
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


class ProgramSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows: limits, and the functions that Call may reach. `max_parallel` requests of one program
    are under way at once; memory comes in pages of `tokens_per_page`."""

    limits: ProgramLimits = SERVER_LIMITS
    functions: Functions = msgspec.field(default_factory=lambda: BUILT_IN)
    max_parallel: int = MAX_PARALLEL
    tokens_per_page: int = 32


class ProgramService:
    """Judges programs and makes their runs."""

    def __init__(self, *, backend: Backend, settings: ProgramSettings) -> None:
        self._settings = settings
        self._turns = TurnPieces(backend.chat_template)

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
        return ProgramAnswer(
            request, self._prepared(request), engine=engine, request_id=request_id, model=name, observer=observer
        )

    def _prepared(self, request: ProgramRequest) -> Prepared:
        limits = self._settings.limits
        if request.limits is not None:
            limits = limits.tightened(request.limits)
        passes = ALL_PASSES if request.passes is None else request.passes
        options = RunOptions(seed=request.seed, passes=passes, limits=limits, functions=self._settings.functions)
        return prepare(request.program, options)


class ProgramAnswer:
    """An accepted program, read once. Closing its chunks early, or cancelling, frees everything."""

    generations: Sequence[Generation] = ()

    def __init__(
        self,
        request: ProgramRequest,
        prepared: Prepared,
        *,
        engine: TokenEngine,
        request_id: str,
        model: str,
        observer: Observer,
    ) -> None:
        self.is_stream = request.stream
        self._request, self._prepared, self._engine = request, prepared, engine
        self._request_id, self._model, self._observer = request_id, model, observer
        self._has_spoken = False

    async def chunks(self) -> AsyncGenerator[Event, None]:
        """Text as it is produced, variables as they get their values, the result at last."""

        def make(emit: Callable[[Event], None]) -> Run[TokenState]:
            return self._prepared.run(self._engine, seed=self._request.seed, emit=emit)

        async with aclosing(stream(make, self._request.arguments)) as events:
            async for event in events:
                self._observe(event)
                yield event

    async def whole(self) -> ProgramResponse:
        """The result only."""
        run = self._prepared.run(self._engine, seed=self._request.seed, emit=self._observe)
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
