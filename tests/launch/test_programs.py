"""Programs next to the scheduler: token-level state, shared prefixes, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from phloem import (
    LLM,
    Delta,
    EngineDead,
    InvalidRequest,
    LimitExceeded,
    ProgramError,
    ProgramLimits,
    ProgramResult,
    RunOptions,
    SamplingParams,
    assistant,
    gen,
    program,
    select,
    system,
    user,
)
from phloem.launch.cli import main


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("dummy:null", max_model_len=1024) as made:
        yield made


@pytest.fixture
def idle(llm: LLM) -> Iterator[LLM]:
    """The engine, whose books must balance afterwards, with nothing open."""
    yield llm
    loop = llm._engine.loop
    stats = loop._scheduler.stats(0.0)
    assert (stats.num_running, stats.num_waiting) == (0, 0), "a request was left open"
    loop.turn()  # the worker is told of rows that ended
    loop._scheduler.check()


@program
def tree(s, question):  # type: ignore[no-untyped-def]
    s += f"Question: {question}\n" + "x" * 200
    branches = s.fork(3, name="ideas")
    for i, b in enumerate(branches):
        b += f"idea {i}:" + gen("idea", max_tokens=6)
    s.join(branches, append=True)
    s += "\nbest:" + select("best", [" first", " second", " third"]) + gen("why", max_tokens=4)


@program
def talk(s, question):  # type: ignore[no-untyped-def]
    s += system("Be brief.")
    s += user(question)
    s += assistant(gen("answer", max_tokens=5, seed=5))
    s += user("And then?")
    s += assistant(gen("more", max_tokens=5, seed=5))


def test_a_fork_computes_what_is_shared_once(idle: LLM) -> None:
    """Red when branches, selections or what follows compute a prefix again: the oracle is the tree of tokens, and one
    page a branch is allowed on top."""
    result = idle.run(tree, RunOptions(seed=1), question="fork test")
    usage = result.usage
    assert usage.requests == 3 + 3 + 1
    num_said = len(result.text or "") + len(" first second third")
    assert usage.computed_tokens <= num_said + 7 * 32
    assert usage.prompt_tokens > 3 * usage.computed_tokens, "most of it came from the cache"
    assert result["best"] in (" first", " second", " third")
    assert [len(record["idea"]) for record in result["ideas"]] == [6, 6, 6]
    ideas = [f"idea {i}:{record['idea']}" for i, record in enumerate(result["ideas"])]
    assert (result.text or "").endswith("".join(ideas) + f"\nbest:{result['best']}{result['why']}")


@pytest.mark.parametrize("passes", [(), ("parallel",), RunOptions().passes], ids=["none", "parallel", "all"])
def test_passes_and_batches_do_not_change_results(idle: LLM, passes: Any) -> None:
    """Red when a branch's tokens depend on what runs beside it."""
    alone = idle.run(tree, RunOptions(seed=1), question="a")
    assert idle.run(tree, RunOptions(seed=1, passes=passes), question="a").variables == alone.variables
    batch = idle.run_batch(tree, [{"question": "a"}, {"question": "b"}], RunOptions(seed=1, passes=passes))
    assert batch[0].variables == alone.variables
    assert batch[1].variables != alone.variables


def test_turns_are_the_chat_templates_own(idle: LLM) -> None:
    """Red when a program's conversation is other tokens than the same conversation through LLM.chat."""
    result = idle.run(talk, RunOptions(passes=()), question="Hi <|im_end|>there")
    same = SamplingParams(max_tokens=5, temperature=0, seed=5)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>there"}]
    [first] = idle.chat(messages, same)
    assert result["answer"] == first.text
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
    [second] = idle.chat(messages, same)
    assert result["more"] == second.text
    assert second.usage.cached_tokens > second.usage.prompt_tokens - 3, "the same tokens, so the same pages"


def test_a_stop_string_ends_the_state_before_itself(idle: LLM) -> None:
    """Red when tokens of a stop string, or of what came after it, stay in the state."""
    free = idle.generate("stop here: ", SamplingParams(max_tokens=12, temperature=0, seed=5))[0].text
    stop = free[4:6]

    @program
    def p(s):  # type: ignore[no-untyped-def]
        s += "stop here: " + gen("a", max_tokens=12, stop=["@@", "never"], seed=5) + gen("b", max_tokens=2, seed=5)

    assert idle.run(p).text == "stop here: " + free + idle.run(p)["b"]
    cut = program(_stopping).given(stop=stop)
    result = idle.run(cut)
    assert result["a"] == free[: free.index(stop)]
    [after] = idle.generate("stop here: " + result["a"] + "|", SamplingParams(max_tokens=2, temperature=0, seed=5))
    assert result["b"] == after.text


def _stopping(s, *, stop):  # type: ignore[no-untyped-def]
    s += "stop here: " + gen("a", max_tokens=12, stop=[stop], seed=5) + "|" + gen("b", max_tokens=2, seed=5)


def test_streaming_and_leaving(idle: LLM) -> None:
    """Red when a stream's text is not its variables', or a reader that leaves does not free the requests."""
    events = list(idle.run_stream(tree, RunOptions(seed=1), question="s"))
    result = events[-1]
    assert isinstance(result, ProgramResult)
    assert result.variables == idle.run(tree, RunOptions(seed=1), question="s").variables
    why = [event.text for event in events if isinstance(event, Delta) and event.name == "why"]
    assert "".join(why) == result["why"]
    assert len(why) > 1
    for event in idle.run_stream(tree, question="leave"):
        assert isinstance(event, Delta)
        break


def test_limits_and_errors_free_everything(idle: LLM) -> None:
    """Red when a run that fails leaves requests, pages or tasks behind."""
    with pytest.raises(LimitExceeded, match="not finished"):
        idle.run(tree, RunOptions(limits=ProgramLimits(wall_time_s=0.001)), question="slow")
    with pytest.raises(LimitExceeded, match="tokens are asked for"):
        idle.run(tree, RunOptions(limits=ProgramLimits(max_total_tokens=20)), question="x")
    with pytest.raises(ProgramError, match=r"arguments\.question"):
        idle.run(tree)
    with pytest.raises(InvalidRequest, match=r"program\.body\[0\]"):
        idle.run({"version": 1, "name": "p", "body": [{"op": "gen", "name": "g"}]})
    with pytest.raises(InvalidRequest, match="tokens"):
        idle.run(tree, question="y" * 2000)
    assert idle.run(tree, question="still there")["best"]


def test_inside_an_event_loop(idle: LLM) -> None:
    """Red when a notebook, whose thread has a loop already, cannot run programs."""

    async def notebook() -> ProgramResult:
        return idle.run(tree, RunOptions(seed=1), question="a")

    assert asyncio.run(notebook()).variables == idle.run(tree, RunOptions(seed=1), question="a").variables


def test_a_closed_llm_says_so() -> None:
    """Red when the caller's mistake hangs."""
    llm = LLM("dummy:null")
    llm.close()
    with pytest.raises(EngineDead, match="closed"):
        llm.run(tree, question="x")


def test_a_constraint_shapes_the_text(idle: LLM) -> None:
    """Red when a node's constraint does not reach the engine, or a bad one is not refused with its place."""

    @program
    def p(s):  # type: ignore[no-untyped-def]
        s += "n: " + gen("n", type=int, max_tokens=20) + " " + gen("c", choices=["red", "green"])

    result = idle.run(p)
    assert isinstance(result["n"], int)
    assert result["c"] in ("red", "green")
    bad = {"version": 1, "name": "p", "body": [
        {"op": "text", "value": {"op": "const", "value": "a"}}, {"op": "gen", "name": "g", "regex": "("}]}  # fmt: skip
    with pytest.raises(InvalidRequest, match=r"program\.body\[1\]"):
        idle.run(bad)


def test_show_prints_every_stage(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    """Red when a pass is not shown, or a form of `phloem program show` breaks."""
    path = tmp_path / "one.py"
    path.write_text(
        "from phloem import *\n@program\ndef p(s):\n    s += 'a' + gen('g')\n    return s['g']\n", encoding="utf-8"
    )
    assert main(["program", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("-- ")] == [
        "-- source", *(f"-- {name}: nothing changes" for name in ("fold", "force", "dead", "hoist", "factor",
                                                                 "parallel",
                                                                 "order")), "-- bounds"]  # fmt: skip
    for form, start in (("mermaid", "flowchart"), ("svg", "<svg"), ("json", '{"version":1')):
        assert main(["program", "show", str(path), "--format", form]) == 0
        assert capsys.readouterr().out.startswith(start)
    (tmp_path / "one.json").write_text('{"version":1,"name":"p","body":[{"op":"no"}]}', encoding="utf-8")
    for arguments in ([str(tmp_path / "one.json")], [str(tmp_path / "none.py")], [str(path), "--name", "q"],
                      [str(path), "--pass", "q"]):  # fmt: skip
        assert main(["program", "show", *arguments]) == 2
        assert "phloem: error:" in capsys.readouterr().err
