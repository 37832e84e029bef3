"""The bounded queue and drain."""

from __future__ import annotations

import asyncio

import pytest

from phloem.core.errors import Overloaded
from phloem.serve.http.admission import Admission

pytestmark = pytest.mark.anyio


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_full_queue_answers_503_before_reading_the_body(serve):
    """Red when an overloaded server reads, parses or tokenizes what it will refuse."""
    server = serve(step_s=0.01, max_queue=1)
    first = asyncio.create_task(server.complete(max_tokens=5))
    await until(lambda: server.admission.num_open == 1)
    was_read = False

    async def body():
        nonlocal was_read
        was_read = True
        yield b"not even JSON"

    refused = await server.http.post("/v1/completions", content=body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert not was_read
    assert (await first).status_code == 200
    assert (await server.complete()).status_code == 200


async def test_a_place_is_free_again_after_every_kind_of_end(serve):
    """Red when an error path keeps its place and the server slowly locks itself."""
    server = serve(max_queue=1)
    for body in ({"prompt": ""}, {"prompt": "x", "n": 0}, {"prompt": "x" * 300}, {"prompt": "x", "stream": True}):
        await server.post("/v1/completions", **body)
        await server.http.post("/v1/completions", content=b"{", headers={"content-type": "application/json"})
        await server.http.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
        assert server.admission.num_open == 0


async def test_a_body_that_does_not_arrive_keeps_nobody_out(serve):
    """Red when a request takes its place before its body was read: a few slow senders would then fill the queue."""
    server = serve(max_queue=1)
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def body():
        yield b'{"prompt": "x", '
        has_begun.set()
        await may_end.wait()
        yield b'"max_tokens": 1}'

    headers = {"content-type": "application/json"}
    slow = asyncio.create_task(server.http.post("/v1/completions", content=body(), headers=headers))
    await has_begun.wait()
    assert (await server.complete()).status_code == 200
    may_end.set()
    assert (await slow).status_code == 200


async def test_several_prompts_take_several_places(serve):
    """Red when one body with many prompts walks around the bound; alone it may be as wide as it likes."""
    server = serve(step_s=0.02, max_queue=3)
    assert (await server.complete(["a"] * 5, max_tokens=1)).status_code == 200
    first = asyncio.create_task(server.complete(max_tokens=5))
    await until(lambda: server.admission.num_open == 1)
    refused = await server.complete(["a"] * 3)
    assert refused.status_code == 503
    assert server.admission.num_open == 1
    assert (await server.complete(["a"] * 2, max_tokens=1)).status_code == 200
    await first


async def test_drain_refuses_newcomers_and_waits_for_the_others(serve):
    """Red when a drain cuts a running request, or lets new ones in."""
    server = serve(step_s=0.02)
    running = asyncio.create_task(server.complete(max_tokens=5))
    await until(lambda: server.admission.num_open == 1)
    draining = asyncio.create_task(server.admission.drain(5))
    await asyncio.sleep(0)
    refused = await server.complete()
    assert (refused.status_code, refused.json()["error"]["message"]) == (503, "the server is shutting down")
    assert "retry-after" in refused.headers
    assert (await server.http.get("/ready")).json() == {"status": "draining"}
    assert (await server.http.get("/health")).status_code == 200
    assert await draining
    assert (await running).json()["usage"]["completion_tokens"] == 5


async def test_drain_gives_up_after_its_timeout_and_the_rest_gets_an_error(serve):
    """Red when shutdown hangs on a slow request, or leaves it without an answer."""
    server = serve(step_s=10.0)
    running = asyncio.create_task(server.complete())
    await until(lambda: server.submits)
    assert not await server.admission.drain(0.01)
    server.engine.fail_all(Overloaded("the server is shutting down"))
    answer = await running
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")


def test_places_are_counted_exactly():
    """Red when a refused widening leaks, or a lone wide request is refused."""
    admission = Admission(max_queue=2)
    with admission.ticket() as wide:
        wide.widen(5)
        assert admission.num_open == 5
        with pytest.raises(Overloaded), admission.ticket():
            pass
    assert admission.num_open == 0
    with admission.ticket(), admission.ticket() as second:
        with pytest.raises(Overloaded):
            second.widen(2)
        assert admission.num_open == 2
    assert admission.num_open == 0
