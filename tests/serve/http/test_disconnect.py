"""A client that leaves frees its request, whatever the server was doing for it. Driven on bare ASGI."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from phloem.core import wire
from phloem.core.errors import EngineDead

pytestmark = pytest.mark.anyio


class Caller:
    """One exchange by hand: what was sent is in `sent`, and `leave` is the client closing its connection."""

    def __init__(self, app, path: str, body: bytes, *, more_body: bool = False) -> None:
        self.sent: list[dict[str, Any]] = []
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": more_body})
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        self.task = asyncio.create_task(app(scope | {"asgi": {"version": "3.0"}}, self._inbox.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def until(self, condition) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)


def body_of(**fields: Any) -> bytes:
    return json.dumps({"prompt": "hi", "max_tokens": 200, **fields}).encode()


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_tokens_come_aborts_at_once(serve, stream):
    """Red when a disconnect is seen only at the next token, or not at all."""
    server = serve(step_s=0.01)
    caller = Caller(server.app, "/v1/completions", body_of(stream=stream))
    await caller.until(lambda: server.submits)
    await asyncio.sleep(0.05)
    caller.leave()
    await asyncio.wait_for(caller.task, 1)
    assert server.engine.commands[-1] == wire.Abort(server.submits[0].request_id)
    assert bool(caller.sent) is stream


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_the_request_waits_for_its_first_token(serve, stream):
    """Red when only a send notices that the client is gone."""
    server = serve(step_s=60.0)
    caller = Caller(server.app, "/v1/completions", body_of(stream=stream))
    await caller.until(lambda: server.submits)
    caller.leave()
    await asyncio.wait_for(caller.task, 1)
    assert server.engine.open_ids == []
    assert caller.sent == []


async def test_leaving_aborts_every_prompt(serve):
    """Red when only the first of several prompts is aborted."""
    server = serve(step_s=0.01)
    caller = Caller(server.app, "/v1/completions", body_of(prompt=["a", "b", "c"]))
    await caller.until(lambda: len(server.submits) == 3)
    caller.leave()
    await asyncio.wait_for(caller.task, 1)
    aborted = {command.request_id for command in server.engine.commands if isinstance(command, wire.Abort)}
    assert aborted == {submit.request_id for submit in server.submits}


async def test_leaving_in_the_middle_of_the_body_submits_nothing(serve):
    """Red when half a body is parsed."""
    server = serve()
    caller = Caller(server.app, "/v1/completions", body_of()[:10], more_body=True)
    caller.leave()
    await asyncio.wait_for(caller.task, 1)
    assert (server.submits, caller.sent, server.admission.num_open) == ([], [], 0)


async def test_death_in_mid_stream_is_an_error_event_and_a_closed_stream(serve):
    """Red when a stream hangs on a dead engine, or ends as if all were well."""
    server = serve(step_s=0.01)
    caller = Caller(server.app, "/v1/completions", body_of(stream=True))
    await caller.until(lambda: len(caller.sent) > 2)
    server.engine.fail_all(EngineDead("the engine process exited with code -9"))
    await asyncio.wait_for(caller.task, 1)
    *_, last, end = [message["body"] for message in caller.sent[1:]]
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"]) == ("engine_dead", "service_unavailable_error")
    assert (end, caller.sent[-1]["more_body"]) == (b"", False)
    assert not any(b"[DONE]" in message.get("body", b"") for message in caller.sent)


async def test_death_before_the_first_token_is_a_503_even_for_a_stream(serve):
    """Red when a stream promises 200 before there is anything to say."""
    server = serve(step_s=60.0)
    callers = [Caller(server.app, "/v1/completions", body_of(stream=stream)) for stream in (False, True)]
    await callers[0].until(lambda: len(server.submits) == 2)
    server.engine.fail_all(EngineDead("gone"))
    for caller in callers:
        await asyncio.wait_for(caller.task, 1)
        assert caller.sent[0]["status"] == 503
