"""One request through the router: choose, send, pass the answer on as it comes; elsewhere if nothing of it was sent.

    nothing was sent to the client   any failure of the replica: once more, at another one
    a stream has begun               its failure ends it with a typed error event; whole events only, never half a one
    a decode replica was chosen      a header names the prefill replica that computes the prompt, if one is well

The bytes of a body are passed on as they are. A body that is no stream is collected before its first byte is sent, so
that it can still be asked for elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from phloem.core.errors import EngineDead, Overloaded, PhloemError
from phloem.parallel.replicas import Assignment, Prompt, Routing
from phloem.serve.http.admission import Admission
from phloem.serve.http.errors import ClientGone
from phloem.serve.http.exchange import KV_FROM, read_json_body, until_disconnect
from phloem.serve.openai.errors import error_body
from phloem.serve.router.fleet import Fleet, Replica
from phloem.serve.router.metrics import RouterMetrics
from phloem.serve.router.prompt import PromptReader
from phloem.serve.router.upstream import Connection, UpstreamLost

MAX_ATTEMPTS = 4
SESSION_HEADER = "x-session-id"
GENERATES = frozenset({"/v1/completions", "/v1/chat/completions"})
"""Requests whose prompt another replica may compute."""
ELSEWHERE = frozenset({502, 503, 504})
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"content-length", b"host",
     b"expect", b"proxy-authorization", b"proxy-connection"}
)  # fmt: skip
_NOT_FROM_CLIENTS = _HOP_BY_HOP | {KV_FROM.encode()}
"""It makes a decode replica connect to where it says: only the router may."""


class Unanswered(Exception):
    """A replica gave no answer, or said that another should; what it said, if it did."""

    def __init__(self, reason: str, response: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None) -> None:
        super().__init__(reason)
        self.response = response


class Proxy:
    """An ASGI application for every path that replicas answer."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        routing: Routing,
        reader: PromptReader,
        admission: Admission,
        metrics: RouterMetrics,
        max_body_bytes: int,
    ) -> None:
        self._fleet, self._routing, self._reader = fleet, routing, reader
        self._admission, self._metrics = admission, metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._admission.check()
        is_post = scope["method"] == "POST"
        body = await read_json_body(scope, receive, max_bytes=self._max_body_bytes) if is_post else b""
        with self._admission.ticket():
            try:
                await until_disconnect(receive, self._answer(scope, body, send))
            except ClientGone:
                self._metrics.outcome("client_gone")

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        prompt = await self._reader.read(scope["path"], body) if body else Prompt(max_tokens=0)
        session = Headers(scope=scope).get(SESSION_HEADER)
        tried: list[Replica] = []
        failure = Unanswered("no replica is ready")
        for _ in range(MAX_ATTEMPTS):
            replicas = {one.load.name: one for one in self._fleet.available() if one not in tried}
            if not replicas:
                break
            loads = [replica.load for replica in replicas.values()]
            assignment = self._routing.assign(prompt, loads, session=session)
            replica = replicas[assignment.load.name]
            self._metrics.sent(replica.load.name, is_retry=bool(tried), prompt=prompt, num_cached=assignment.num_cached)
            tried.append(replica)
            try:
                pairing = self._pair(replica, assignment, prompt) if scope["path"] in GENERATES else []
                return await self._attempt(replica, assignment, scope, body, send, pairing)
            except Unanswered as error:
                failure = error
            finally:
                assignment.end()
        if failure.response is not None:
            self._metrics.outcome("refused")
            return await _send_whole(send, *failure.response)
        self._metrics.outcome("no_replica")
        raise Overloaded(f"no replica could answer ({failure}); try again later", retry_after_s=2)

    def _pair(self, replica: Replica, assignment: Assignment, prompt: Prompt) -> list[tuple[bytes, bytes]]:
        """Who computes the prompt, if not `replica`: counted there, and as the header that says so."""
        prefill = self._fleet.prefill_for(replica, prompt)
        if prefill is None or prefill.offer.address is None:
            return []
        assignment.compute_prompt_at(prefill.load)
        self._metrics.handed_over(prefill.load.name)
        return [(KV_FROM.encode(), prefill.offer.address.encode())]

    async def _attempt(
        self,
        replica: Replica,
        assignment: Assignment,
        scope: Scope,
        body: bytes,
        send: Send,
        pairing: list[tuple[bytes, bytes]],
    ) -> None:
        """Raises Unanswered only if nothing was sent to the client."""
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = [(name, value) for name, value in scope["headers"] if name not in _NOT_FROM_CLIENTS] + pairing
        replica.breaker.sent()
        try:
            connection = await replica.pool.request(scope["method"], target, headers, body)
            try:
                await self._pass_on(connection, replica, assignment, send)
            finally:
                replica.pool.release(connection)
        except UpstreamLost as error:
            replica.breaker.failed()
            raise Unanswered(f"{replica.load.name}: {error}") from error
        finally:
            replica.breaker.abandoned()

    async def _pass_on(self, connection: Connection, replica: Replica, assignment: Assignment, send: Send) -> None:
        headers = [(name, value) for name, value in connection.headers if name not in _HOP_BY_HOP]
        headers.append((b"x-phloem-replica", replica.load.name.encode()))
        is_stream = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
        if not is_stream:
            content = await connection.body()
            if connection.status in ELSEWHERE:
                raise Unanswered(f"{replica.load.name} says {connection.status}", (connection.status, headers, content))
            replica.breaker.succeeded()
            assignment.answered()
            await _send_whole(send, connection.status, headers, content)
            self._metrics.outcome("answered")
            return
        async with aclosing(_whole_events(connection)) as events:
            first = await anext(events, b"")
            replica.breaker.succeeded()
            assignment.answered()
            await send({"type": "http.response.start", "status": connection.status, "headers": headers})
            failure = await self._stream(first, events, replica, send)
        if failure is not None:
            await _send_part(send, b"data: " + msgspec.json.encode(error_body(failure)) + b"\n\n")
        self._metrics.outcome("answered" if failure is None else "cut_off")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(
        self, first: bytes, events: AsyncGenerator[bytes, None], replica: Replica, send: Send
    ) -> PhloemError | None:
        """What ended the stream early, if anything did."""
        await _send_part(send, first)
        try:
            async for part in events:
                await _send_part(send, part)
        except UpstreamLost as error:
            replica.breaker.failed()
            return EngineDead(f"the replica was lost in the middle of this answer ({error}); send the request again")
        return None


async def _whole_events(connection: Connection) -> AsyncGenerator[bytes, None]:
    """The body in pieces that end where an event ends."""
    rest = b""
    async with aclosing(connection.chunks()) as chunks:
        async for chunk in chunks:
            end = chunk.rfind(b"\n\n") + 2
            if end < 2:
                rest += chunk
                if (cut := rest.rfind(b"\n\n") + 2) >= 2:  # the blank line came in two pieces
                    yield rest[:cut]
                    rest = rest[cut:]
                continue
            yield rest + chunk[:end]
            rest = chunk[end:]
    if rest:
        yield rest


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _send_whole(send: Send, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
    sized = [*headers, (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": sized})
    await send({"type": "http.response.body", "body": content, "more_body": False})
