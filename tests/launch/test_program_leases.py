"""A program over the whole engine but the model: what it comes back for is still there, and free when it ended."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.conftest import Engine

from phloem import LLM, LimitExceeded, ProgramError, ProgramLimits, RunOptions, gen, program, select
from phloem.core.errors import PhloemError
from phloem.lang.events import ProgramResult
from phloem.lang.functions import BUILT_IN
from phloem.lang.passes.pipeline import ALL_PASSES
from phloem.lang.prepare import prepare
from phloem.launch.inprocess import InProcessRequests
from phloem.serve.openai.params import ModelLimits
from phloem.serve.programs.engine import TokenEngine
from phloem.serve.programs.turns import TurnPieces

HEAD = "x" * 40


@pytest.fixture(scope="module")
def text() -> Any:
    with LLM("dummy:null") as llm:
        yield llm._text


@program
def two_visits(s):  # type: ignore[no-untyped-def]
    s += HEAD + gen("a", max_tokens=9)
    s.call("pause", s["a"])
    s += gen("b", max_tokens=3)


@program
def branches(s):  # type: ignore[no-untyped-def]
    s += HEAD
    twins = s.fork(2, name="twins")
    for b in twins:
        b += "same start, " + gen("a", max_tokens=6)
        b.call("pause", b["a"])
        b += select("pick", ["yes", "no"]) + gen("b", max_tokens=3)
    s.join(twins)
    s += gen("c", max_tokens=3)


class Harness:
    """Runs programs on an engine of 48 pages whose ledger is checked in every turn."""

    def __init__(self, text: Any, *, depth: int) -> None:
        self.engine = Engine(depth=depth, num_pages=48, policy="lpm")
        self._text = text
        self._num_floods = 0

    def flood(self) -> bool:
        """Others fill the memory several times over, one after the other."""
        for _ in range(12):
            self._num_floods += 1
            name = f"flood{self._num_floods}"
            self.engine.submit(name, [1 + self._num_floods] * 60, max_tokens=2, ignore_eos=True, namespace=name)
            self.engine.run()
        return True

    def run(
        self, made: Any, pause: Callable[[], bool], *, leave_after: int | None = None, **options: Any
    ) -> ProgramResult:
        """The program, whose `pause` function does that. `leave_after`: cancelled after so many rounds of the loop."""
        functions = {**BUILT_IN, "pause": lambda _: pause()}
        prepared = prepare(made, RunOptions(functions=functions, **options))

        async def go() -> ProgramResult:
            task, rounds = asyncio.current_task(), itertools.count(1)

            def turn(_: float) -> bool:
                if next(rounds) == leave_after and task is not None:
                    task.cancel()
                return self._turn()

            requests = InProcessRequests(
                send=self.engine.inbox.send, poll=lambda: self.engine.outbox.poll(0.0), turn=turn, on_stats=_ignore
            )
            async with requests.served():
                tokens = TokenEngine(
                    requests=requests, tokenizer=self._text.tokenizer, turns=TurnPieces(self._text.chat),
                    limits=ModelLimits(256, 191, 97), run_id="run", max_parallel=8, tokens_per_page=4,
                )  # fmt: skip
                return await prepared.run(tokens, seed=1, emit=lambda event: None).execute({})

        return asyncio.run(go())

    def _turn(self) -> bool:
        is_busy = self.engine.loop.turn()
        self.engine.scheduler.check()
        return is_busy

    def expect_nothing_held(self) -> None:
        """Red when a request or a lease is left."""
        self.engine.turn()
        stats = self.engine.scheduler.stats(0.0)
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert self.engine.num_leased_pages == self.engine.scheduler._ledger.stats().num_leased == 0


@pytest.fixture(params=[0, 1], ids=["depth0", "depth1"])
def harness(request: Any, text: Any, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr("phloem.lang.run.is_built_in", lambda *_: True)  # no thread: a pause may turn the loop itself
    return Harness(text, depth=request.param)


@pytest.mark.parametrize(("made", "num_once"), [(two_visits, 40), (branches, 40 + 12 + 2 * 5)], ids=["line", "fork"])
def test_what_a_program_comes_back_for_is_not_computed_again(harness: Harness, made: Any, num_once: int) -> None:
    """Red when others' requests evict what a program said while it does something else: at most a page a request is
    computed beyond what has to be once."""
    result = harness.run(made, harness.flood, passes=())
    assert result.usage.computed_tokens <= num_once + 4 * result.usage.requests
    harness.expect_nothing_held()


def test_the_pressure_is_there(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when the test above would pass without leases."""
    monkeypatch.setattr(type(harness.engine.scheduler._residents.leases), "take", lambda *_, **__: None)
    assert harness.run(two_visits, harness.flood).usage.computed_tokens >= 2 * 40


@pytest.mark.parametrize(
    ("pause", "options", "error"),
    [
        (lambda: True, {}, None),
        (lambda: _fail(), {}, ProgramError),
        (lambda: True, {"limits": ProgramLimits(max_total_tokens=10)}, LimitExceeded),
        (lambda: _sleep(), {"limits": ProgramLimits(wall_time_s=0.03)}, LimitExceeded),
    ],
    ids=["end", "error", "limit", "time"],
)
@pytest.mark.parametrize("made", [two_visits, branches], ids=["line", "fork"])
def test_every_end_frees_everything(
    harness: Harness, made: Any, pause: Callable[[], bool], options: Any, error: type[PhloemError] | None
) -> None:
    """Red when a run that ends, however, leaves a lease behind."""
    if error is None:
        harness.run(made, pause, **options)
    else:
        with pytest.raises(error):
            harness.run(made, pause, **options)
    harness.expect_nothing_held()


@pytest.mark.parametrize("passes", [(), ALL_PASSES], ids=["off", "on"])
@pytest.mark.parametrize("made", [two_visits, branches], ids=["line", "fork"])
def test_a_program_may_be_cancelled_in_any_state(harness: Harness, made: Any, passes: Any) -> None:
    """Red when cancelling after any round of the loop, as a client that leaves does, leaves a request or a lease."""
    for rounds in range(1, 200):
        try:
            harness.run(made, lambda: True, leave_after=rounds, passes=passes)
        except asyncio.CancelledError:
            harness.expect_nothing_held()
        else:
            break
    assert 10 < rounds < 199, "cancelled in every round, until there was none left"


def _ignore(_: object) -> None:
    pass


def _sleep() -> bool:
    time.sleep(0.04)
    return True


def _fail() -> bool:
    raise ValueError("no")
