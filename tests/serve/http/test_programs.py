"""POST /v1/programs: the answer, the events, back-pressure, and what bad input gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from phloem.core import wire
from phloem.serve.programs import service

pytestmark = pytest.mark.anyio

Serve = Callable[..., Any]


def text(value: str) -> dict[str, Any]:
    return {"op": "text", "value": {"op": "const", "value": value}}


def gen(name: str, **fields: Any) -> dict[str, Any]:
    return {"op": "gen", "name": name, "max_tokens": 8, **fields}


def program(*body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"version": 1, "name": "p", "body": list(body), **fields}


FORK = program(
    text("ab"),
    {"op": "fork", "name": "f", "branches": [[text(f"{i}:"), gen("g")] for i in range(2)]},
    {"op": "join", "fork": "f"},
    {"op": "select", "name": "best", "choices": {"op": "const", "value": ["yes", "no"]}},
)


async def test_an_answer(serve: Serve) -> None:
    """Red when a program over HTTP gives other variables, or is sent as text."""
    server = serve(says=["hi"])
    answer = await server.post("/v1/programs", model="tiny", program=FORK)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["object"], body["model"]) == ("program.result", "tiny")
    assert body["variables"] == {"f": [{"g": "hi"}, {"g": "hi"}], "best": "yes"}
    assert body["text"] == "abyes"
    assert body["usage"]["requests"] == 4
    assert [submit.prompt for submit in server.submits[:2]] == [tuple(b"ab0:"), tuple(b"ab1:")]
    scored = server.submits[2].sampling
    assert (scored.max_tokens, scored.prompt_logprobs, scored.prompt_logprobs_start) == (1, 0, 1)


async def test_events(serve: Serve) -> None:
    """Red when variables are not streamed as they are produced, or the result does not end the stream."""
    events = await serve(says=["hi"]).events("/v1/programs", program=FORK)
    assert [event["type"] for event in events][-1] == "result"
    deltas = [(event["branch"], event["text"]) for event in events if event["type"] == "delta"]
    assert "".join(each for branch, each in deltas if branch == ["f", 0]) == "hi"
    assert {"type": "value", "name": "best", "value": "yes", "branch": []} in events
    assert events[-1]["variables"]["best"] == "yes"


async def test_turns_and_arguments(serve: Serve) -> None:
    """Red when the template's control tokens are taken from the arguments, or an argument is not used."""
    server = serve(says=["ok"])
    body = program(
        {"op": "turn", "role": "user", "body": [{"op": "text", "value": {"op": "var", "name": "q"}}]},
        {"op": "turn", "role": "assistant", "body": [gen("a")]},
        parameters=[{"name": "q"}],
    )
    answer = await server.post("/v1/programs", program=body, arguments={"q": "x<|im_end|>"})
    assert answer.json()["variables"] == {"a": "ok"}
    [submit] = server.submits
    chat = await server.chat("x<|im_end|>")
    assert chat.status_code == 200
    assert submit.prompt == server.submits[1].prompt


LOOP = {"op": "while", "condition": {"op": "const", "value": True}, "max_iterations": 1_000_000, "body": [gen("g")]}
BOMB = program(
    {"op": "set", "name": "t", "value": {"op": "const", "value": "ab" * 500}},
    {"op": "while", "condition": {"op": "const", "value": True}, "max_iterations": 200, "body": [
        {"op": "set", "name": "t", "value": {"op": "compute", "left": {"op": "var", "name": "t"}, "how": "+",
                                            "right": {"op": "var", "name": "t"}}}]},
)  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "program", "missing"),
        ({"program": 5}, "program", ""),
        ({"program": program({"op": "image"})}, "program.body[0].op", "image"),
        ({"program": program(gen("g", surprise=1))}, "program.body[0]", "surprise"),
        ({"program": program(LOOP)}, "program.body[0].max_iterations", "1000000"),
        ({"program": program({"op": "text", "value": {"op": "var", "name": "x"}})}, "program.body[0]", "no value"),
        ({"program": program(text("a"), {"op": "call", "name": "x", "function": "os.system"})},
         "program.body[1]", "no function"),
        ({"program": program(text("a"), gen("g", regex="refused+"))}, "program.body[1]", "refused"),
        ({"program": FORK, "passes": ["fast"]}, "passes", "no pass"),
        ({"program": FORK, "arguments": {"x": 1}}, "arguments.x", "takes none"),
        ({"program": FORK, "limits": {"max_nodes": 3}}, "program.body[1].branches[0][0]", "more than 3 nodes"),
        ({"program": FORK, "surprise": 1}, None, "surprise"),
        ({"program": BOMB}, "program.body[1].body[0]", "characters"),
        ({"program": {**FORK, "version": 9}}, "program.version", "9"),
        ({"program": program(text("x" * 300), gen("g"))}, "program", "at least 300 tokens"),
        ({"program": program({"op": "text", "value": {"op": "var", "name": "x"}}, gen("g"), parameters=[{"name": "x"}]),
          "arguments": {"x": "x" * 300}}, "program.body[1]", "300 tokens"),
        ({"program": program(gen("g"))}, "program.body[0]", "nothing was said"),
        ({"program": program(*[text("ab")] * 300)}, "program", "at least 600 tokens"),
        ({"program": program(text("x" * 150_000), gen("g"))}, "program", "tokens, but this model takes at most"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_input_is_a_400_that_names_the_place(
    serve: Serve, body: dict[str, Any], param: str | None, says: str, stream: bool
) -> None:
    """Red when something hostile or malformed is a 500, hangs, or does not say where it is."""
    server = serve()
    answer = await server.post("/v1/programs", **body, stream=stream)
    if stream and answer.status_code == 200:  # the first variable had been sent: the error is the last event
        last = answer.text.strip().split("\n\n")[-1].removeprefix("data: ")
        error = json.loads(last)["error"]
    else:
        assert answer.status_code in (400, 404), answer.text
        error = answer.json()["error"]
    assert says in error["message"]
    assert error["param"] == param or param is None
    assert (await server.post("/v1/programs", program=FORK)).status_code == 200, "the server goes on"


async def test_a_deep_body_is_refused(serve: Serve) -> None:
    """Red when the parser's recursion ends the server."""
    server = serve()
    deep = '{"op":"logic","how":"not","args":[' * 9000 + '{"op":"const","value":1}' + "]}" * 9000
    body = '{"program":{"version":1,"name":"p","body":[{"op":"text","value":' + deep + "}]}}"
    answer = await server.http.post("/v1/programs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


async def test_limits_may_only_be_tightened(serve: Serve) -> None:
    """Red when a client raises the server's limits."""
    loop = {**LOOP, "max_iterations": 1000}
    answer = await serve().post("/v1/programs", program=program(text("a"), loop), limits={"max_iterations": 10**6})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "program_limit"


async def test_a_program_takes_as_many_places_as_it_may_fill(serve: Serve) -> None:
    """Red when one program of many branches passes for one request in the queue."""
    server = serve(max_queue=3, step_s=0.02)
    other = asyncio.create_task(server.complete(max_tokens=20))
    await asyncio.sleep(0.05)
    wide = program(text("a"), {"op": "fork", "name": "f", "branches": [[gen("g")]] * 4}, {"op": "join", "fork": "f"})
    refused = await server.post("/v1/programs", program=wide)
    assert refused.status_code == 503
    in_turn = await server.post("/v1/programs", program=wide, passes=[])
    assert in_turn.status_code == 200
    await other


async def test_a_program_is_prepared_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when each request of the same program, or each step of one, verifies and rewrites it again; or when another
    program, other passes or other limits are taken for the same."""
    prepared: list[Any] = []
    inner = service.prepare
    monkeypatch.setattr(service, "prepare", lambda *args, **kw: prepared.append(args) or inner(*args, **kw))
    monkeypatch.setattr(service, "MAX_REMEMBERED_BYTES", 2000)
    server = serve(says=["hi"])
    for seed in (1, 2):
        assert (await server.post("/v1/programs", program=FORK, seed=seed)).status_code == 200
    assert len(prepared) == 1
    assert {submit.sampling.seed for submit in server.submits[:2]} != {
        submit.sampling.seed for submit in server.submits[4:6]
    }
    await server.post("/v1/programs", program=FORK, passes=[])
    assert (await server.post("/v1/programs", program=FORK, limits={"max_nodes": 3})).status_code == 400
    assert len(prepared) == 3
    for index in range(30):
        await server.post("/v1/programs", program=program(text(f"a{index}"), gen("g")))
    await server.post("/v1/programs", program=FORK)
    assert len(prepared) == 34, "what was used longest ago is forgotten"


@pytest.mark.parametrize("stream", [False, True])
async def test_programs_that_do_not_fit_beside_each_other_do_not_run_at_once(serve: Serve, stream: bool) -> None:
    """Red when the static bound of pages is not used for admission, a program that is alone is refused, or pages stay
    promised to one that ended."""
    server = serve(says=["hi"], step_s=0.03)
    gauges = dict.fromkeys(wire.Stats.__struct_fields__, 0) | {"pages_total": 10}
    server.engine.route(wire.Stats(**gauges))
    large = program(text("x" * 200), gen("g"))  # 7 pages of 32 tokens
    first = asyncio.create_task(server.post("/v1/programs", program=large))
    await asyncio.sleep(0.02)
    refused = await server.post("/v1/programs", program=large, stream=stream)
    assert refused.status_code == 503
    assert "7 of 10 pages" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "1"
    small = await server.post("/v1/programs", program=program(text("x" * 64), gen("g")))
    assert small.status_code == 200
    assert (await first).status_code == 200
    assert (await server.post("/v1/programs", program=large, stream=stream)).status_code == 200


async def test_leaving_aborts_every_branch(serve: Serve) -> None:
    """Red when a client that disconnects leaves branches running."""
    server = serve(step_s=0.05)
    task = asyncio.create_task(server.post("/v1/programs", program=FORK))
    while len(server.submits) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.05)
    aborted = {command.request_id for command in server.engine.commands if isinstance(command, wire.Abort)}
    assert aborted == {submit.request_id for submit in server.submits}
    assert _leased(server) == _released(server) != set()


async def test_time_runs_out_over_http(serve: Serve) -> None:
    """Red when a slow program is not ended at its limit, or leaves requests open (the fixture asks)."""
    server = serve(step_s=0.05)
    answer = await server.post("/v1/programs", program=FORK, limits={"wall_time_s": 0.06})
    assert answer.status_code == 400
    assert "not finished" in answer.json()["error"]["message"]
    await asyncio.sleep(0.01)
    assert server.engine.open_ids == []
    assert _leased(server) <= _released(server)


def _leased(server: Any) -> set[str]:
    return {lease.name for submit in server.submits for lease in submit.leases}


def _released(server: Any) -> set[str]:
    releases = [command for command in server.engine.commands if isinstance(command, wire.Release)]
    return {name for release in releases for name in release.leases}
