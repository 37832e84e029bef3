"""One HTTP exchange on bare ASGI: read the body, watch for a disconnect, write server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from phloem.core.errors import PhloemError
from phloem.serve.http.errors import BodyTooLarge, BodyTooSlow, ClientGone, UnsupportedMediaType
from phloem.serve.openai.errors import error_body

T = TypeVar("T")

KV_FROM = "x-phloem-kv-from"
"""Header: host:port of the prefill replica that computes this request's prompt; a router sets it."""
BODY_TIMEOUT_S = 60.0
EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


async def read_json_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """The whole body. Raises UnsupportedMediaType, BodyTooLarge (by its header already), BodyTooSlow, ClientGone."""
    headers = Headers(scope=scope)
    media_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"the body is {media_type[:100]!r}; send content-type: application/json")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise BodyTooLarge(f"the body has {length} bytes; at most {max_bytes} are read (--max-body-mb)")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(receive, max_bytes=max_bytes)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from error


async def _read(receive: Receive, *, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client disconnected while sending")
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise BodyTooLarge(f"the body has more than {max_bytes} bytes (--max-body-mb)")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled, and ClientGone raised, as soon as the client disconnects."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone("the client disconnected")
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_events(chunks: AsyncGenerator[msgspec.Struct, None], send: Send) -> PhloemError | None:
    """Write `chunks` as server-sent events, then [DONE]. An error before the first chunk is raised; one that comes
    later is written as an event, ends the stream without [DONE], and is returned."""
    failure: PhloemError | None = None
    has_started = False
    encode = msgspec.json.Encoder().encode
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                if not has_started:
                    has_started = True
                    await send({"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM)})
                await _send_event(send, encode(chunk))
        except PhloemError as error:
            if not has_started:
                raise
            failure = error
    await _send_event(send, b"[DONE]" if failure is None else encode(error_body(failure)))
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return failure


async def _send_event(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
