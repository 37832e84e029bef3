"""The same program in process, over POST /v1/programs, and against the server as any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from phloem import (
    LLM,
    EndpointEngine,
    InvalidRequest,
    ProgramError,
    RequestFailed,
    assistant,
    gen,
    program,
    run_on,
    select,
    user,
)
from phloem.lang.ir import to_json

if TYPE_CHECKING:
    from tests.launch.conftest import ServerProcess


@program
def plan(s, topic):  # type: ignore[no-untyped-def]
    s += f"About {topic}: " + gen("first", max_tokens=5, seed=3)
    branches = s.fork(2, name="ideas")
    for i, b in enumerate(branches):
        b += f" {i}." + gen("idea", max_tokens=4, seed=4)
    s.join(branches, append=True)
    s += select("pick", [" yes", " no"]) + gen("last", max_tokens=3, seed=5)


@program
def talk(s, topic):  # type: ignore[no-untyped-def]
    s += user(topic)
    s += assistant("Well, ", gen("one", max_tokens=4, seed=3), gen("two", max_tokens=4, seed=3, choices=["a", "b"]))
    s += user("More.")
    s += assistant(gen("three", max_tokens=4, seed=3))


@pytest.mark.parametrize("made", [plan, talk], ids=["plan", "talk"])
def test_three_ways_one_result(shared_server: ServerProcess, made: Any) -> None:
    """Red when a program gives other variables in process, over HTTP as a whole, or request by request."""
    with LLM("dummy:null") as llm:
        in_process = llm.run(made, topic="ferns")
    body = {"program": json.loads(to_json(made.trace())), "arguments": {"topic": "ferns"}}
    request = urllib.request.Request(
        f"{shared_server.url}/v1/programs", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        whole = json.load(answer)
    piecewise = run_on(EndpointEngine(f"{shared_server.url}/v1", model="dummy:null"), made, topic="ferns")
    assert whole["variables"] == in_process.variables
    assert piecewise.variables == in_process.variables
    assert piecewise.usage.requests == in_process.usage.requests
    assert piecewise.usage.generated_tokens >= in_process.usage.generated_tokens - 2


def test_what_an_endpoint_cannot_do_names_the_node(shared_server: ServerProcess) -> None:
    """Red when a node that a plain endpoint has no words for is sent as something else."""
    plain = EndpointEngine(f"{shared_server.url}/v1", model="dummy:null", extensions=False)

    @program
    def regex(s):  # type: ignore[no-untyped-def]
        s += "a" + gen("x", regex="a+")

    @program
    def inside(s):  # type: ignore[no-untyped-def]
        s += user("a")
        s += assistant("Well, ", gen("x"))

    @program
    def choose(s):  # type: ignore[no-untyped-def]
        s += user("a")
        s += assistant(select("x", ["a", "b"]))

    for made, says in ((regex, "no regex"), (inside, "cannot go on inside"), (choose, "cannot score inside")):
        with pytest.raises(ProgramError, match=says) as caught:
            run_on(plain, made)
        assert "test_endpoint.py" in (caught.value.field or "")


def test_an_endpoints_errors_are_typed(shared_server: ServerProcess) -> None:
    """Red when a refusal, or nobody at the other end, is a traceback of http.client."""
    with pytest.raises(InvalidRequest, match="404"):
        run_on(EndpointEngine(f"{shared_server.url}/v1", model="other"), plan, topic="x")
    with pytest.raises(RequestFailed, match="broke off"):
        run_on(EndpointEngine("http://127.0.0.1:9/v1", model="other"), plan, topic="x")
