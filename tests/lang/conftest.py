"""An engine without a model: what it says follows from everything that was said before, and from the seed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from phloem.core.errors import InvalidRequest
from phloem.lang.engine import Listener, Need, Said, Score, Usage
from phloem.lang.events import Event, ProgramResult
from phloem.lang.ir import Gen, Method, Role
from phloem.lang.prepare import RunOptions, prepare
from phloem.lang.run import Run


class FakeEngine:
    """States are texts. Records every request, and how many were open at once."""

    max_state_tokens = 10_000
    tokens_per_page = 4

    def __init__(self, *, step_s: float = 0.0, max_parallel: int = 64, says: str | None = None) -> None:
        self.max_parallel = max_parallel
        self.prompts: list[str] = []
        self.scored: list[str] = []
        self.warmed: list[str] = []
        self.leases: set[str] = set()
        self.needs: list[tuple[Need, ...]] = []
        self.num_open = self.most_open = self.num_cancelled = self.num_leases = 0
        self._step_s, self._says = step_s, says

    def start(self) -> str:
        return ""

    def num_tokens(self, state: str) -> int:
        return len(state)

    def text(self, state: str) -> str:
        return state

    def add_text(self, state: str, text: str) -> str:
        return state + text

    def open_turn(self, state: str, role: Role) -> str:
        return f"{state}<{role}>"

    def close_turn(self, state: str) -> str:
        return state + "</>"

    def add_suffixes(self, state: str, *, base: str, branches: Sequence[str]) -> str:
        return state + "".join(branch[len(base) :] for branch in branches)

    def lease(self) -> str:
        self.num_leases += 1
        self.leases.add(name := f"lease {self.num_leases}")
        return name

    def release(self, leases: Sequence[str]) -> None:
        self.leases -= set(leases)

    async def generate(
        self, state: str, gen: Gen, *, seed: int, place: str, listen: Listener, needs: Sequence[Need] = ()
    ) -> tuple[str, Said]:
        assert {need.lease for need in needs} <= self.leases, "a branch that is over needs nothing"
        self.prompts.append(state)
        self.needs.append(tuple(needs))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            await asyncio.sleep(self._step_s)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_open -= 1
        text = self._says if self._says is not None else self._text(state, gen, seed)
        for character in text:
            listen(character)
        return state + text, Said(text=text, finish="stop", usage=Usage(requests=1, generated_tokens=len(text)))

    @staticmethod
    def _text(state: str, gen: Gen, seed: int) -> str:
        if gen.choices is not None:
            return gen.choices[number_of(state, seed) % len(gen.choices)]
        if gen.regex is not None and gen.parse == "text":
            return gen.regex
        if gen.parse in ("integer", "number"):
            return str(number_of(state, seed) % 10)
        return f"w{number_of(state, seed if gen.temperature else 0) % 1000}"[: gen.max_tokens]

    async def score(
        self, state: str, choices: Sequence[str], *, method: Method, place: str, needs: Sequence[Need] = ()
    ) -> tuple[Sequence[Score], Usage]:
        self.scored += [state + choice for choice in choices]
        scores = [
            Score(tuple(choice.encode()),
                  tuple(-(number_of(state + choice[: i + 1], 0) % 7) for i in range(len(choice))),
                  tuple(-1.0 for _ in choice))
            for choice in choices
        ]  # fmt: skip
        return scores, Usage(requests=len(choices))

    async def check(self, gen: Gen, *, place: str) -> None:
        if gen.regex == "(refused":
            raise InvalidRequest(f"{place}: refused", field=place)

    async def warm(self, state: str, *, lease: str) -> Usage:
        self.warmed.append(state)
        return Usage(requests=1)


def number_of(text: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=4).digest(), "little")


Runner = Callable[..., tuple[ProgramResult, list[Event]]]


@pytest.fixture(scope="session")
def new_engine() -> type[FakeEngine]:
    """To make engines of one's own."""
    return FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def run(engine: FakeEngine) -> Runner:
    """run(program, arguments, **options) -> (result, events), on the fake engine with seed 1."""

    def execute(
        program: Any, arguments: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[ProgramResult, list[Event]]:
        events: list[Event] = []
        prepared = prepare(program, RunOptions(**options))
        made: Run[str] = prepared.run(engine, seed=1, emit=events.append)
        return prepared.typed(asyncio.run(made.execute(arguments or {}))), events

    return execute


@pytest.fixture
def author(tmp_path: Path) -> Callable[[str], Any]:
    """author(source) -> the program `p` of a file with that source: programs are traced from files."""

    def write(source: str) -> Any:
        path = tmp_path / "author.py"
        path.write_text("from phloem import *\n" + source, encoding="utf-8")
        namespace: dict[str, Any] = {"__name__": "author"}
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), namespace)
        return namespace["p"]

    return write
