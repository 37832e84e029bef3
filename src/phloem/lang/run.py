"""The executor: walks a program over an Engine. One asyncio task a branch; cancelling the run frees everything.

A run owns its variables, its meter, its gate and its leases; the engine owns the states. A branch leases what it said
from its first request to its end, and with it, until they have requests of their own, what it was forked from: what the
run comes back for is not evicted in between.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import ChainMap
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

from phloem.core.errors import PhloemError
from phloem.lang.engine import Engine, Need, Usage
from phloem.lang.errors import LimitExceeded, ProgramError
from phloem.lang.events import BranchPath, Delta, Event, ProgramResult, Value
from phloem.lang.expr import AnyExpr, evaluate, text_of
from phloem.lang.functions import BUILT_IN, Functions, call, is_built_in
from phloem.lang.gate import Gate
from phloem.lang.ir import (
    AnyNode,
    Block,
    Call,
    Fork,
    Gen,
    If,
    Join,
    Map,
    Program,
    Select,
    SetVar,
    Text,
    Turn,
    While,
)
from phloem.lang.limits import ProgramLimits
from phloem.lang.meter import Meter
from phloem.lang.scoring import best
from phloem.lang.values import parsed
from phloem.lang.verify import check_choices
from phloem.lang.walk import nodes_in, places_of

S = TypeVar("S")

LARGE_TEXT_CHARS = 8192
"""Longer texts are tokenized in a thread: others must not wait for it."""
VISITS_BETWEEN_PAUSES = 64


class Frame(Generic[S]):
    """A state while a block runs on it. `own` are the variables that this branch set itself."""

    def __init__(
        self,
        state: S,
        variables: Mapping[str, Any],
        *,
        lease: str,
        outer: tuple[Need, ...] = (),
        path: tuple[int, ...] = (),
        branch: BranchPath = (),
    ) -> None:
        self.state = state
        self.lease = lease
        self.outer = outer  # what those that it was forked from need of its state
        # only the first map is written: the others may be shared with other branches
        self.variables = ChainMap[str, Any]({}, cast(dict[str, Any], variables))
        self.own: dict[str, Any] = {}
        self.path = path
        self.branch = branch
        self.forks: dict[str, OpenFork[S]] = {}

    def set(self, name: str, value: Any) -> None:
        """A variable gets its value."""
        self.variables[name] = self.own[name] = value

    def child(self, index: int, *, node: Fork | Map, before: Mapping[str, Any], lease: str) -> Frame[S]:
        """A branch: what it sets stays its own, what was set `before` is there once for all of them."""
        path, branch = (*self.path, node.site, index), (*self.branch, node.name, index)
        return Frame(self.state, before, lease=lease, outer=self.outer, path=path, branch=branch)


class OpenFork(Generic[S]):
    """Branches between Fork and Join."""

    def __init__(self, base: S, lease: str, frames: Sequence[Frame[S]], tasks: Sequence[asyncio.Task[None]]) -> None:
        self.base = base
        self.lease = lease
        self.frames = frames
        self.tasks = tasks


class Run(Generic[S]):
    """One run of one program."""

    def __init__(
        self,
        program: Program,
        engine: Engine[S],
        *,
        limits: ProgramLimits,
        functions: Functions = BUILT_IN,
        seed: int | None = None,
        emit: Callable[[Event], None] = lambda event: None,
        places: Mapping[int, str] | None = None,
    ) -> None:
        self._program = program
        self._engine = engine
        self._meter = Meter(limits)
        self._functions = functions
        self._seed = random.SystemRandom().getrandbits(63) if seed is None else seed
        self._emit = emit
        self._places = places_of(program) if places is None else places
        self._gate = Gate(num_places=engine.max_parallel, depth_first=program.order == "depth_first")
        self._group = asyncio.TaskGroup()
        self._leases: set[str] = set()
        self._usage = Usage()
        self._next_pause = VISITS_BETWEEN_PAUSES

    async def execute(self, arguments: Mapping[str, Any]) -> ProgramResult:
        """Run to the end. ProgramError and LimitExceeded name the place; whatever is raised, nothing is left behind."""
        frame = Frame(self._engine.start(), bind(self._program, arguments), lease=self._lease())
        try:
            async with asyncio.timeout(self._meter.limits.wall_time_s):
                await self._check_constraints()
                async with self._group:
                    await self._group.create_task(self._block(self._program.body, frame))
        except TimeoutError as error:
            message = f"program: not finished after {self._meter.limits.wall_time_s:g} s"
            raise LimitExceeded(message, field="program") from error
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            self._release(*self._leases)
        outputs = self._program.outputs
        variables = frame.own if outputs is None else {name: frame.variables[name] for name in outputs}
        text = self._engine.text(frame.state) if outputs is None else None
        result = ProgramResult(variables=variables, text=text, usage=self._usage)
        self._emit(result)
        return result

    async def _check_constraints(self) -> None:
        for node in nodes_in(self._program.body):
            if isinstance(node, Gen):
                await self._engine.check(node, place=self._place(node))

    async def _block(self, block: Block, frame: Frame[S]) -> None:
        for node in block:
            self._meter.visit(self._place(node))
            if self._meter.num_visits >= self._next_pause:
                self._next_pause = self._meter.num_visits + VISITS_BETWEEN_PAUSES
                await asyncio.sleep(0)  # a loop without generations must not hold up others
            await self._node(node, frame)

    async def _node(self, node: AnyNode, frame: Frame[S]) -> None:
        match node:
            case Text():
                await self._say(text_of(self._value(node.value, node, frame)), node, frame)
            case Gen():
                await self._generate(node, frame)
            case Select():
                await self._select(node, frame)
            case Turn():
                frame.state = self._engine.open_turn(frame.state, node.role)
                await self._block(node.body, frame)
                frame.state = self._engine.close_turn(frame.state)
            case If():
                await self._block(node.then if self._value(node.condition, node, frame) else node.orelse, frame)
            case While():
                await self._loop(node, frame)
            case Fork() | Map():
                await self._fork(node, frame)
            case Join():
                await self._join(node, frame)
            case Call():
                await self._call(node, frame)
            case SetVar():
                self._set(node.name, self._value(node.value, node, frame), node, frame)

    async def _say(self, text: str, node: AnyNode, frame: Frame[S]) -> None:
        self._meter.say(len(text), self._place(node))
        if len(text) > LARGE_TEXT_CHARS:
            frame.state = await asyncio.to_thread(self._engine.add_text, frame.state, text)
        elif text:
            frame.state = self._engine.add_text(frame.state, text)

    async def _generate(self, node: Gen, frame: Frame[S]) -> None:
        place = self._place(node)
        self._meter.request(node.max_tokens, place)
        seed = node.seed if node.seed is not None else seed_of(self._seed, node.site, frame.path)

        def listen(text: str) -> None:
            self._emit(Delta(node.name, text, frame.branch))

        async with self._gate.place(frame.path):
            state, said = await self._engine.generate(
                frame.state, node, seed=seed, place=place, listen=listen, needs=(*frame.outer, Need(frame.lease))
            )
        self._meter.refund(max(0, node.max_tokens - said.usage.generated_tokens))
        self._usage += said.usage
        frame.state = state
        self._set(node.name, parsed(said.text, node, finish=said.finish, place=place), node, frame)

    async def _select(self, node: Select, frame: Frame[S]) -> None:
        place = self._place(node)
        choices = self._value(node.choices, node, frame)
        check_choices(choices, limits=self._meter.limits, place=f"{place}.choices")
        self._meter.request(sum(map(len, choices)), place, num_requests=len(choices))
        async with self._gate.place(frame.path):
            needs = (*frame.outer, Need(frame.lease, self._engine.num_tokens(frame.state)))
            scores, usage = await self._engine.score(frame.state, choices, method=node.method, place=place, needs=needs)
        self._usage += usage
        choice = choices[best(scores, node.method)]
        await self._say(choice, node, frame)
        self._set(node.name, choice, node, frame)

    async def _call(self, node: Call, frame: Frame[S]) -> None:
        args = [self._value(arg, node, frame) for arg in node.args]
        work = partial(call, self._functions, node.function, args, place=self._place(node))
        value = work() if is_built_in(self._functions, node.function) else await asyncio.to_thread(work)
        self._set(node.name, value, node, frame)

    async def _loop(self, node: While, frame: Frame[S]) -> None:
        path = frame.path
        for iteration in range(node.max_iterations):
            self._meter.visit(self._place(node))
            if not self._value(node.condition, node, frame):
                break
            frame.path = (*path, node.site, iteration)
            await self._block(node.body, frame)
        frame.path = path

    async def _fork(self, node: Fork | Map, frame: Frame[S]) -> None:
        place = self._place(node)
        items = self._value(node.items, node, frame) if isinstance(node, Map) else [None] * len(node.branches)
        if not isinstance(items, list):
            raise ProgramError(f"{place}.items: must be a list", field=place)
        self._meter.branch(len(items), place)
        base = await self._base(node, frame)
        before = MappingProxyType(dict(frame.variables))
        frames = [base.child(i, node=node, before=before, lease=self._lease()) for i in range(len(items))]
        tasks = []
        for index, (item, child) in enumerate(zip(items, frames)):
            if isinstance(node, Map):
                child.variables[node.item] = item
            work = self._branch(node.body if isinstance(node, Map) else node.branches[index], child)
            if node.parallel:
                tasks.append(self._group.create_task(work))
            else:
                await work
        frame.forks[node.name] = OpenFork(frame.state, base.lease, frames, tasks)

    async def _base(self, node: Fork | Map, frame: Frame[S]) -> Frame[S]:
        """What all branches of a fork begin with: where the state is now, and what they say before they part."""
        needs = (*frame.outer, Need(frame.lease, self._engine.num_tokens(frame.state)))
        base = Frame(frame.state, frame.variables, lease=self._lease(), path=frame.path, branch=frame.branch)
        await self._block(node.prefix, base)
        base.outer = (*needs, Need(base.lease, self._engine.num_tokens(base.state)))
        return base

    async def _branch(self, block: Block, frame: Frame[S]) -> None:
        await self._block(block, frame)
        self._release(frame.lease)

    async def _join(self, node: Join, frame: Frame[S]) -> None:
        fork = frame.forks.pop(node.fork)
        for task in fork.tasks:
            await task
        self._release(fork.lease)
        # by name: a record may be said, and passes may change the order in which variables are set
        records = [dict(sorted(child.own.items())) for child in fork.frames]
        self._set(node.fork, records, node, frame)
        if node.append:
            states = [child.state for child in fork.frames]
            frame.state = self._engine.add_suffixes(frame.state, base=fork.base, branches=states)

    def _lease(self) -> str:
        lease = self._engine.lease()
        self._leases.add(lease)
        return lease

    def _release(self, *leases: str) -> None:
        self._engine.release(leases)
        self._leases.difference_update(leases)

    def _set(self, name: str, value: Any, node: AnyNode, frame: Frame[S]) -> None:
        self._meter.value(value, self._place(node))
        frame.set(name, value)
        self._emit(Value(name, value, frame.branch))

    def _value(self, expr: AnyExpr, node: AnyNode, frame: Frame[S]) -> Any:
        return evaluate(expr, frame.variables, place=self._place(node), max_chars=self._meter.limits.max_value_chars)

    def _place(self, node: AnyNode) -> str:
        return self._places.get(node.site, "program")


async def stream(
    run: Callable[[Callable[[Event], None]], Run[S]], arguments: Mapping[str, Any]
) -> AsyncGenerator[Event, None]:
    """The events of a run, made with a listener by `run`. The last is its ProgramResult; closing early ends it."""
    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    task = asyncio.create_task(run(queue.put_nowait).execute(arguments))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (event := await queue.get()) is not None:
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def bind(program: Program, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters' values. ProgramError names an argument that is missing or unknown."""
    names = [parameter.name for parameter in program.parameters]
    for name in arguments:
        if name not in names:
            takes = ", ".join(names) or "none"
            raise ProgramError(f"arguments.{name}: the program takes {takes}", field=f"arguments.{name}")
    values = {}
    for parameter in program.parameters:
        if parameter.name not in arguments and parameter.required:
            raise ProgramError(f"arguments.{parameter.name}: missing", field=f"arguments.{parameter.name}")
        values[parameter.name] = arguments.get(parameter.name, parameter.default)
    return values


def seed_of(run_seed: int, site: int, path: tuple[int, ...]) -> int:
    """A generation's seed: from where it is, not from when it runs. 63 bits."""
    words = b"".join((number % (1 << 64)).to_bytes(8, "little") for number in (run_seed, site, *path))
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the others: one of ours, if there is one."""
    leaves = list(_leaves(group))
    return next((leaf for leaf in leaves if isinstance(leaf, PhloemError)), leaves[0])


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
