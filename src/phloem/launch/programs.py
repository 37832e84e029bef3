"""`LLM.run` and its kin: programs next to the scheduler, in this process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Self, TypeVar

from phloem.lang.events import Event, ProgramResult
from phloem.lang.prepare import AnyProgram, Prepared, RunOptions, prepare
from phloem.lang.run import Run, seed_of, stream
from phloem.launch.inprocess import InProcessRequests
from phloem.serve.openai.params import ModelLimits
from phloem.serve.programs.engine import CheckConstraint, TokenEngine
from phloem.serve.programs.turns import TurnPieces
from phloem.serve.text.load import TextModel

T = TypeVar("T")


class ProgramRunner:
    """Runs programs on one `LLM`. `requests` makes the client of one run."""

    def __init__(
        self,
        *,
        requests: Callable[[], InProcessRequests],
        text: TextModel,
        limits: ModelLimits,
        max_parallel: int,
        tokens_per_page: int,
        check_constraint: CheckConstraint | None = None,
    ) -> None:
        self._requests = requests
        self._text = text
        self._turns = TurnPieces(text.chat)
        self._limits = limits
        self._max_parallel, self._tokens_per_page = max_parallel, tokens_per_page
        self._check_constraint = check_constraint
        self._numbers = itertools.count()

    def run(self, program: AnyProgram, arguments: Mapping[str, Any], options: RunOptions) -> ProgramResult:
        """One run, to its end."""
        return self.run_batch(program, [arguments], options)[0]

    def run_batch(
        self, program: AnyProgram, batch: Sequence[Mapping[str, Any]], options: RunOptions
    ) -> list[ProgramResult]:
        """One run an item of `batch`, all at once; results in that order. The first that fails ends the others."""
        prepared = prepare(program, options)
        with EventLoop() as loop:
            return loop.run(self._run_all(prepared, batch, options))

    async def _run_all(
        self, prepared: Prepared, batch: Sequence[Mapping[str, Any]], options: RunOptions
    ) -> list[ProgramResult]:
        requests = self._requests()
        async with requests.served():
            engine = self._engine(requests, namespace=options.namespace)
            lease = engine.lease()
            if "factor" in options.passes and len(batch) > 1:
                await prepared.warm(engine, batch, lease=lease)
            runs = [self._run(prepared, engine, options, item) for item in range(len(batch))]
            tasks = [asyncio.ensure_future(run.execute(arguments)) for run, arguments in zip(runs, batch)]
            try:
                return [prepared.typed(result) for result in await asyncio.gather(*tasks)]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                engine.release([lease])

    def stream(self, program: AnyProgram, arguments: Mapping[str, Any], options: RunOptions) -> Iterator[Event]:
        """The events of one run, as they come; the last one is its ProgramResult. Closing it early frees everything."""
        prepared = prepare(program, options)
        with EventLoop() as loop:
            events = self._events(prepared, arguments, options)
            try:
                while (event := loop.run(_next(events))) is not None:
                    yield event
            finally:
                loop.run(events.aclose())

    async def _events(
        self, prepared: Prepared, arguments: Mapping[str, Any], options: RunOptions
    ) -> AsyncGenerator[Event, None]:
        requests = self._requests()
        async with requests.served():
            engine = self._engine(requests, namespace=options.namespace)
            async with aclosing(
                stream(lambda emit: self._run(prepared, engine, options, 0, emit), arguments)
            ) as events:
                async for event in events:
                    yield prepared.typed(event) if isinstance(event, ProgramResult) else event

    def _run(
        self,
        prepared: Prepared,
        engine: TokenEngine,
        options: RunOptions,
        item: int,
        emit: Callable[[Event], None] = lambda event: None,
    ) -> Run[Any]:
        seed = None if options.seed is None else seed_of(options.seed, 0, (item,))
        return prepared.run(engine, seed=seed, emit=emit)

    def _engine(self, requests: InProcessRequests, *, namespace: str) -> TokenEngine:
        return TokenEngine(
            requests=requests,
            tokenizer=self._text.tokenizer,
            turns=self._turns,
            limits=self._limits,
            run_id=f"program-{next(self._numbers)}",
            max_parallel=self._max_parallel,
            tokens_per_page=self._tokens_per_page,
            namespace=namespace,
            check_constraint=self._check_constraint,
        )


class EventLoop:
    """An event loop of one's own, run piece by piece: in this thread, or in another one where a loop runs here already
    (notebooks)."""

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1, "phloem-program") if _loop_runs_here() else None
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; tasks that it leaves go on with the next call."""
        return self._runner.run(work) if self._thread is None else self._thread.submit(self._runner.run, work).result()

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            self._runner.close()
        else:
            self._thread.submit(self._runner.close).result()
            self._thread.shutdown()


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
