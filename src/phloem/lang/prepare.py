"""From what a caller gives to a program that is ready to run: parsed, verified, rewritten, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from phloem.core.errors import ContextLengthExceeded
from phloem.lang import ir
from phloem.lang.engine import Engine, Usage
from phloem.lang.errors import LimitExceeded, ProgramError
from phloem.lang.events import Event, ProgramResult
from phloem.lang.expr import evaluate, text_of
from phloem.lang.functions import BUILT_IN, Functions
from phloem.lang.ir import Block, Program, Text, Turn
from phloem.lang.limits import ProgramLimits
from phloem.lang.passes.bounds import Bounds, CountTokens, bounds, least_tokens
from phloem.lang.passes.context import PassContext
from phloem.lang.passes.pipeline import ALL_PASSES, rewrite
from phloem.lang.run import Run, bind
from phloem.lang.state import TypePath
from phloem.lang.verify import numbered, verify
from phloem.lang.walk import places_of

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to run. `seed` None: another one each time; `passes` are names from passes/pipeline.py; prefixes are shared
    only with runs of the same `namespace`."""

    seed: int | None = None
    passes: Collection[str] = ALL_PASSES
    namespace: str = ""
    limits: ProgramLimits = field(default_factory=ProgramLimits)
    functions: Functions = field(default_factory=lambda: BUILT_IN)


@runtime_checkable
class Traceable(Protocol):
    """What `@program` makes of a function."""

    def trace(self) -> Program:
        """Its IR."""

    @property
    def types(self) -> Mapping[TypePath, type]:
        """Types that variables are converted to."""


AnyProgram = Program | Traceable | str | bytes | Mapping[str, Any]


class Prepared:
    """A program that may run any number of times."""

    def __init__(
        self, program: Program, *, source: Program, options: RunOptions, types: Mapping[TypePath, type], bounds: Bounds
    ) -> None:
        self.program = program
        self.bounds = bounds
        self._places = places_of(source)
        self._options = options
        self._types = types

    def run(self, engine: Engine[S], *, seed: int | None, emit: Callable[[Event], None]) -> Run[S]:
        """A run on `engine`. ContextLengthExceeded when the program cannot fit."""
        longest = engine.max_state_tokens
        if longest and self.bounds.min_state_tokens > longest:
            least = self.bounds.min_state_tokens
            message = f"program: says at least {least} tokens, but this model takes at most {longest}"
            raise ContextLengthExceeded(message, field="program")
        options = self._options
        return Run(
            self.program,
            engine,
            limits=options.limits,
            functions=options.functions,
            seed=seed,
            emit=emit,
            places=self._places,
        )

    async def warm(self, engine: Engine[S], batch: Sequence[Mapping[str, Any]], *, lease: str) -> Usage:
        """Have the text that all runs of a batch begin with computed once, before they start; it stays leased."""
        texts = [leading_text(self.program, arguments, limits=self._options.limits) for arguments in batch]
        shared = []
        for entries in zip(*texts):
            if len(set(entries)) > 1:
                break
            shared.append(entries[0])
        state = engine.start()
        for what in shared:
            match what:
                case Opening(role):
                    state = engine.open_turn(state, role)
                case Closing():
                    state = engine.close_turn(state)
                case str():
                    state = engine.add_text(state, what)
        if engine.num_tokens(state) < max(1, engine.tokens_per_page):
            return Usage()
        return await engine.warm(state, lease=lease)

    def typed(self, result: ProgramResult) -> ProgramResult:
        """Variables as the types their author gave. ProgramError when one does not fit."""
        if not self._types:
            return result
        variables: dict[str, Any] = result.variables
        for path, kind in self._types.items():
            try:
                variables = _converted(variables, path, kind)
            except msgspec.ValidationError as error:
                name = str(path[-1])
                raise ProgramError(f"{name}: {error}", field=name) from error
        return msgspec.structs.replace(result, variables=variables)


def _converted(value: Any, path: TypePath, kind: type) -> Any:
    """The value with what is at `path` converted, where it is there: not every branch sets what another does."""
    match value, path:
        case _, ():
            return msgspec.convert(value, kind)
        case dict(), (str(name), *rest) if name in value:
            return {**value, name: _converted(value[name], tuple(rest), kind)}
        case list(), (index, *rest):
            return [_converted(each, tuple(rest), kind) if index in (None, i) else each for i, each in enumerate(value)]
        case _:
            return value


def prepare(program: AnyProgram, options: RunOptions, *, count: CountTokens = least_tokens) -> Prepared:
    """A program from `@program`, the IR, its JSON text, or parsed JSON. ProgramError says what is wrong."""
    types: Mapping[TypePath, type] = program.types if isinstance(program, Traceable) else {}
    source = numbered(as_program(program))
    verify(source, limits=options.limits, functions=options.functions)
    context = PassContext(functions=options.functions, limits=options.limits)
    rewritten = rewrite(source, options.passes, context)
    found = bounds(rewritten, limits=options.limits, count=count)
    if found.min_state_tokens > options.limits.max_total_tokens:
        raise LimitExceeded("program: says more tokens than it may", field="program")
    return Prepared(rewritten, source=source, options=options, types=types, bounds=found)


def as_program(program: AnyProgram) -> Program:
    """The IR of what a caller gives."""
    match program:
        case Program():
            return program
        case str() | bytes():
            return ir.from_json(program)
        case Traceable():
            return program.trace()
        case _:
            return ir.decode(program)


class Opening(NamedTuple):
    """A turn begins."""

    role: ir.Role


class Closing(NamedTuple):
    """A turn ends."""


def leading_text(
    program: Program, arguments: Mapping[str, Any], *, limits: ProgramLimits
) -> list[str | Opening | Closing]:
    """What the program says before anything has to be generated or decided."""
    variables = bind(program, arguments)
    said: list[str | Opening | Closing] = []

    def say(block: Block) -> bool:
        for node in block:
            match node:
                case Text():
                    value = evaluate(node.value, variables, place="program", max_chars=limits.max_value_chars)
                    said.append(text_of(value))
                case Turn():
                    said.append(Opening(node.role))
                    if not say(node.body):
                        return False
                    said.append(Closing())
                case _:
                    return False
        return True

    say(program.body)
    return said


def run_on(
    engine: Engine[S], program: AnyProgram, /, options: RunOptions | None = None, **arguments: Any
) -> ProgramResult:
    """Run a program on any engine, to its end: `run_on(EndpointEngine(url, model=...), program, question=...)`."""
    chosen = options or RunOptions()
    prepared = prepare(program, chosen)
    run = prepared.run(engine, seed=chosen.seed, emit=lambda event: None)
    return prepared.typed(asyncio.run(run.execute(arguments)))
