"""GET /cache/events: the prefix index as server-sent events, for a router that sends requests where their prefix is.

    data: {"type":"cache_change","sequence":1,"page_size":32,"inserted":[...],"evicted":[],"is_snapshot":true}
    : alive                                                       (every second in which nothing changes)

Page names are those of core.digest. The stream ends when the server drains.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec
from starlette.types import Receive, Scope, Send

from phloem.core import wire
from phloem.serve.client import EngineClient
from phloem.serve.http.admission import Admission
from phloem.serve.http.errors import ClientGone
from phloem.serve.http.exchange import EVENT_STREAM, until_disconnect

ALIVE_S = 1.0


class CacheEvents:
    """An ASGI application. It takes no place in the queue: it computes nothing."""

    def __init__(self, *, client: EngineClient, admission: Admission) -> None:
        self._client = client
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._stream(send))
        except ClientGone:
            return

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM)})
        encode = msgspec.json.Encoder().encode
        async with aclosing(self._client.cache_changes()) as changes:
            coming = asyncio.ensure_future(anext(changes))
            try:
                while not self._admission.is_draining:
                    done, _ = await asyncio.wait({coming}, timeout=ALIVE_S)
                    line = b": alive\n\n"
                    if done:
                        line = b"data: " + encode(coming.result()) + b"\n\n"
                        coming = asyncio.ensure_future(anext(changes))
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


decode_change = msgspec.json.Decoder(wire.CacheChange).decode
