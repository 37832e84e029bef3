"""The executor on an engine without a model: what is said, in which state, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from phloem import LimitExceeded, ProgramError, ProgramLimits
from phloem.core.errors import ContextLengthExceeded, InvalidRequest
from phloem.lang.errors import UnparsableOutput
from phloem.lang.events import Delta, ProgramResult, Value
from phloem.lang.gate import Gate
from phloem.lang.prepare import RunOptions, prepare
from phloem.lang.run import stream

Author = Callable[[str], Any]
Runner = Callable[..., Any]

TREE = """
@program
def p(s, x):
    with s.assistant():
        s += f"Q {x};"
        branches = s.fork(3, name="ideas")
        for i, b in enumerate(branches):
            b += f"idea {i}:" + gen("idea", temperature=1.0)
        s.join(branches)
        s += " all: " + s["ideas"][1]["idea"]
        s += select("pick", ["yes", "no"])
"""


def test_a_fork_says_what_its_branches_say(author: Author, run: Runner, engine: Any) -> None:
    """Red when a branch's text leaks into its siblings or its parent, or a record is lost."""
    result, _ = run(author(TREE), {"x": "?"})
    ideas = [record["idea"] for record in result["ideas"]]
    assert len(set(ideas)) == 3, "branches have seeds of their own"
    assert sorted(engine.prompts) == [f"<assistant>Q ?;idea {i}:" for i in range(3)]
    assert result.text == f"<assistant>Q ?; all: {ideas[1]}{result['pick']}</>"
    assert engine.most_open == 3


def test_a_seed_repeats_a_run_whatever_the_passes(author: Author, run: Runner, engine: Any) -> None:
    """Red when a generation's seed depends on when it runs."""
    together, _ = run(author(TREE), {"x": "?"})
    one_by_one, _ = run(author(TREE), {"x": "?"}, passes=())
    assert together.variables == one_by_one.variables
    assert engine.most_open == 3


def test_join_appends_what_was_said(author: Author, run: Runner) -> None:
    """Red when appended branches are said anew, or without what they had in common."""
    made = author(
        "@program\ndef p(s):\n    s += 'a'\n    bs = s.fork(2)\n    for b in bs:\n        b += 'same '\n"
        "    bs[0] += '0'\n    bs[1] += '1'\n    s.join(bs, append=True)\n    s += 'z'\n"
    )
    for passes in ((), ("factor", "parallel")):
        assert run(made, passes=passes)[0].text == "asame 0same 1z"


def test_control_flow(author: Author, run: Runner) -> None:
    """Red when a loop runs once too often, or the wrong block of an If."""
    made = author(
        """
@program
def p(s, n, word="b"):
    s["i"] = 0
    with s.While(s["i"] < n, max_iterations=4):
        s["i"] = s["i"] + 1
        with s.If((s["i"] == 2) | ~(s["i"] < 4)):
            s += "!"
        with s.Else():
            s += f"{s['i']}{word}"
    with s.Map([1, 2], item="k", name="squares") as m:
        m["square"] = m["k"] * m["k"]
    s["total"] = s["squares"][0]["square"] + s["squares"][1]["square"]
    s["best"] = s.call("majority", ["u", "v", "v"])
"""
    )
    result, _ = run(made, {"n": 3})
    assert (result.text, result["total"], result["best"]) == ("1b!3b", 5, "v")
    assert run(made, {"n": 99, "word": "c"})[0].text == "1c!3c!", "max_iterations ends it"


def test_values_are_typed(author: Author, run: Runner, engine: Any) -> None:
    """Red when a typed generation gives its text."""
    result, _ = run(author("@program\ndef p(s):\n    s += 'n: ' + gen('n', type=int) + gen('b', type=bool)\n"))
    assert isinstance(result["n"], int)
    assert isinstance(result["b"], bool)


TYPED = """
import msgspec

class Note(msgspec.Struct):
    stars: int

class Other(msgspec.Struct):
    stars: int

@program
def p(s):
    s += "a" + gen("own", type=Note) + gen("gone", type=Note)
    s["gone"] = s["gone"]["stars"]
    with s.Map([1, 2], name="notes") as m:
        m += gen("note", type=Note)
    pair = s.fork(2, name="pair")
    pair[0] += gen("x", type=Note)
    pair[1] += gen("x", type=Other)
    inner = pair[1].fork(1, name="inner")
    inner[0] += gen("deep", type=Note)
    s.join(pair)
"""


def test_structs_come_back_as_structs_wherever_they_are(author: Author, run: Runner, engine: Any) -> None:
    """Red when a struct in a branch's record is a plain record, has a sibling's type, or keeps the type of what its
    variable held before."""
    engine._says = '{"stars": 3}'
    result, _ = run(author(TYPED))
    assert [type(record["note"]).__name__ for record in result["notes"]] == ["Note", "Note"]
    assert [type(record["x"]).__name__ for record in result["pair"]] == ["Note", "Other"]
    assert result["pair"][1]["inner"][0]["deep"].stars == result["own"].stars == result["gone"] == 3


def test_text_that_is_not_of_its_type_is_the_models_failure(author: Author, run: Runner, engine: Any) -> None:
    """Red when unparsable text is a traceback, or the author's fault."""
    engine._says = "{"
    made = author("@program\ndef p(s):\n    s += 'n' + gen('n', json_schema={'type': 'object'})\n")
    with pytest.raises(UnparsableOutput, match="'n' is not json"):
        run(made)


def test_events_come_in_order_and_end_with_the_result(author: Author, run: Runner) -> None:
    """Red when a named variable is not streamed as it is produced, or its branch is wrong."""
    result, events = run(author(TREE), {"x": "?"})
    assert events[-1] == result
    assert isinstance(events[-1], ProgramResult)
    texts: dict[Any, str] = {}
    for event in events:
        if isinstance(event, Delta):
            texts[event.branch] = texts.get(event.branch, "") + event.text
    assert texts == {("ideas", i): result["ideas"][i]["idea"] for i in range(3)}
    assert Value("pick", result["pick"]) in events


@pytest.mark.parametrize(
    ("arguments", "field"), [({}, "arguments.x"), ({"x": 1, "y": 2}, "arguments.y")]
)  # fmt: skip
def test_arguments_are_checked(author: Author, run: Runner, arguments: dict[str, Any], field: str) -> None:
    """Red when an argument too few or too many is not named."""
    with pytest.raises(ProgramError) as caught:
        run(author(TREE), arguments)
    assert caught.value.field == field


LOOP = """
@program
def p(s):
    s["t"] = "ab"
    with s.While(True, max_iterations=1000):
        s["t"] = s["t"] + s["t"]
        s += "x" + gen("g", max_tokens=10)
"""


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (ProgramLimits(max_executed_nodes=50), "50 nodes"),
        (ProgramLimits(max_value_chars=100), "100 characters"),
        (ProgramLimits(max_total_tokens=25), "25 tokens"),
        (ProgramLimits(max_requests=3), "3 requests"),
        (ProgramLimits(max_text_chars=4), "4 characters"),
    ],
)
def test_dynamic_limits(author: Author, run: Runner, engine: Any, limits: ProgramLimits, says: str) -> None:
    """Red when a hostile program goes on past a limit."""
    with pytest.raises(LimitExceeded, match=says):
        run(author(LOOP), limits=limits)
    assert len(engine.prompts) < 40


def test_a_map_over_too_many_is_refused(author: Author, run: Runner) -> None:
    """Red when the number of branches is bounded only where it is known before the run."""
    made = author("@program\ndef p(s, xs):\n    with s.Map(xs) as m:\n        m += 'a' + gen('g')\n")
    with pytest.raises(LimitExceeded, match="branches"):
        run(made, {"xs": list(range(65))})
    with pytest.raises(ProgramError, match="must be a list"):
        run(made, {"xs": "abc"})


def test_time_runs_out(author: Author, run: Runner, engine: Any) -> None:
    """Red when a slow program is not ended, or leaves requests open."""
    engine._step_s = 10
    with pytest.raises(LimitExceeded, match="not finished"):
        run(author(TREE), {"x": "?"}, limits=ProgramLimits(wall_time_s=0.05))
    assert (engine.num_open, engine.num_cancelled) == (0, 3)


def test_a_million_iterations_do_not_hold_up_others(author: Author, engine: Any) -> None:
    """Red when a loop without generations keeps the event loop to itself."""
    made = author("@program\ndef p(s):\n    with s.While(True, max_iterations=1000):\n        s['x'] = 1\n")
    options = RunOptions(limits=ProgramLimits(max_executed_nodes=1900), passes=())

    async def both() -> int:
        run = prepare(made, options).run(engine, seed=1, emit=lambda _: None)
        task = asyncio.create_task(run.execute({}))
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert isinstance(task.exception(), LimitExceeded)
        return turns

    assert asyncio.run(both()) > 20


def test_one_failing_branch_ends_the_others(author: Author, run: Runner, engine: Any) -> None:
    """Red when siblings of a failed branch go on."""
    engine._step_s = 5
    made = author(
        "@program\ndef p(s, t):\n    s += 'a'\n    bs = s.fork(2)\n    bs[0] += gen('g')\n    bs[1].call('json', t)\n"
        "    s.join(bs)\n"
    )
    with pytest.raises(ProgramError, match="json cannot take these values"):
        run(made, {"t": "no"})
    assert engine.num_cancelled == 1


def test_closing_a_stream_frees_everything(author: Author, engine: Any) -> None:
    """Red when a reader that leaves does not end the run."""
    engine._step_s = 0.01
    prepared = prepare(author(TREE), RunOptions())

    async def leave() -> None:
        async with aclosing(stream(lambda emit: prepared.run(engine, seed=1, emit=emit), {"x": "?"})) as events:
            async for _ in events:
                break

    asyncio.run(leave())
    assert engine.num_open == 0
    assert engine.scored == []


def test_a_constraint_is_tried_before_anything_runs(author: Author, run: Runner, engine: Any) -> None:
    """Red when the third generation's bad constraint is found after two were paid for."""
    made = author("@program\ndef p(s):\n    s += 'a' + gen('x') + gen('y', regex='(refused')\n")
    with pytest.raises(InvalidRequest, match=r"author\.py:4"):
        run(made)
    assert engine.prompts == []


def test_what_cannot_fit_is_refused_at_once(author: Author, run: Runner, engine: Any) -> None:
    """Red when the static lower bound is not used for admission."""
    engine.max_state_tokens = 2
    made = author("@program\ndef p(s):\n    s += 'a'\n    s += 'b'\n    s += 'c'\n    s += gen('x')\n")
    with pytest.raises(ContextLengthExceeded, match="at least 3 tokens"):
        run(made)


def test_depth_first_goes_to_the_earliest_branch() -> None:
    """Red when the gate lets in whoever came first although the program's order is depth first, or loses a place."""

    async def order(*, depth_first: bool) -> list[tuple[int, ...]]:
        gate, may_leave = Gate(num_places=1, depth_first=depth_first), asyncio.Event()
        entered: list[tuple[int, ...]] = []

        async def work(path: tuple[int, ...]) -> None:
            async with gate.place(path):
                entered.append(path)
                await may_leave.wait()

        first = asyncio.create_task(work((9,)))
        await asyncio.sleep(0)
        gone = asyncio.create_task(work((0,)))
        tasks = [asyncio.create_task(work(path)) for path in ((2,), (1, 1), (1,))]
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        may_leave.set()
        await asyncio.gather(first, *tasks)
        return entered

    assert asyncio.run(order(depth_first=True)) == [(9,), (1,), (1, 1), (2,)]
    assert asyncio.run(order(depth_first=False)) == [(9,), (2,), (1, 1), (1,)]


def test_a_result_is_json(author: Author, run: Runner) -> None:
    """Red when an event cannot be sent."""
    _, events = run(author(TREE), {"x": "?"})
    assert all(msgspec.json.decode(msgspec.json.encode(event)) for event in events)


def test_a_batch_warms_what_its_programs_begin_with(author: Author, engine: Any) -> None:
    """Red when the prefix of a batch is computed by every program, or one that is not shared is warmed."""
    made = author(
        "@program\ndef p(s, x):\n    s += user('the same words. ')\n    s += user('and ', x)\n"
        "    s += assistant(gen('g'))\n"
    )
    prepared = prepare(made, RunOptions())
    asyncio.run(prepared.warm(engine, [{"x": "a"}, {"x": "b"}], lease="all"))
    assert engine.warmed == ["<user>the same words. </><user>and "]
    asyncio.run(prepared.warm(engine, [{"x": "a"}, {"x": "a"}], lease="all"))
    assert engine.warmed[1] == "<user>the same words. </><user>and a</><assistant>"
    short = prepare(author("@program\ndef p(s, x):\n    s += 'a'\n    s += x + gen('g')\n"), RunOptions())
    asyncio.run(short.warm(engine, [{"x": "a"}, {"x": "b"}], lease="all"))
    assert len(engine.warmed) == 2, "less than a page is not worth a request"


NESTED = """
@program
def p(s):
    s += "head "
    outer = s.fork(2, name="outer")
    for b in outer:
        b += "same " + gen("first")
        inner = b.fork(2, name="inner")
        for i, c in enumerate(inner):
            c += f"{i}" + gen("second")
        b.join(inner)
        b += gen("third")
    s.join(outer)
    s += gen("last") + select("pick", ["a", "b"])
"""


@pytest.mark.parametrize("passes", [(), ("factor", "parallel")])
def test_branches_lease_what_they_come_back_for(author: Author, run: Runner, engine: Any, passes: Any) -> None:
    """Red when a generation does not lease what those it was forked from go on from, or a lease outlives its branch."""
    run(author(NESTED), passes=passes)
    assert engine.leases == set(), "everything is released"
    by_prompt = dict(zip(engine.prompts, engine.needs))
    first = next(needs for prompt, needs in by_prompt.items() if prompt == "head same ")
    assert [need.num_tokens for need in first if need.num_tokens] == [
        len("head "),
        len("head same " if passes else "head "),
    ]
    assert first[-1].num_tokens is None, "its own state, as far as it gets"
    deepest = next(needs for prompt, needs in by_prompt.items() if prompt.endswith("0"))
    assert deepest[:2] == first[:2], "what the outermost state needs"
    assert deepest[2].lease == first[2].lease, "what the branch between needs, up to the fork"
    last = by_prompt["head "]
    assert [need.lease for need in last] == [first[0].lease]


def test_every_end_releases_the_leases(author: Author, run: Runner, engine: Any) -> None:
    """Red when a run that fails, or is too slow, keeps a lease."""
    engine._step_s = 0.01
    for limits in (
        ProgramLimits(wall_time_s=0.015),
        ProgramLimits(max_requests=3),
        ProgramLimits(max_total_tokens=200),
    ):
        with pytest.raises(LimitExceeded):
            run(author(NESTED), limits=limits)
        assert engine.num_leases > 0
        assert engine.leases == set()
