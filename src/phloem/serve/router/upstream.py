"""HTTP/1.1 to a replica: a connection, its response as a stream of body bytes, and a pool of idle connections.

Reading is what moves bytes: while nobody reads, the transport stops after a buffer's worth, and so does the replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from urllib.parse import urlsplit

import httptools

Headers = list[tuple[bytes, bytes]]

CONNECT_TIMEOUT_S = 2.0
READ_BYTES = 1 << 16
MAX_IDLE = 64


class UpstreamLost(Exception):
    """The replica could not be reached, or went away before its response was complete."""


class Address:
    """Where a replica listens. ValueError for what is no http(s) URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"{url!r} is not the address of a replica; write http://HOST:PORT")
        self.host, self.is_tls = parts.hostname, parts.scheme == "https"
        self.port = parts.port or (443 if self.is_tls else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.netloc = f"{host}:{self.port}"
        self.url = f"{parts.scheme}://{self.netloc}"


class Connection:
    """One connection, one exchange at a time. The methods named `on_` are httptools' callbacks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._begin()
        self.was_used = False

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self.headers: Headers = []
        self.status = 0
        self._has_head = self._is_complete = False

    @property
    def is_reusable(self) -> bool:
        """Whether another exchange may follow."""
        return self._is_complete and self._parser.should_keep_alive() and not self._writer.is_closing()

    async def send(self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Write a request and read the head of its response. UpstreamLost."""
        self._begin()
        lines = [method.encode() + b" " + target + b" HTTP/1.1", *(name + b": " + value for name, value in headers)]
        lines.append(b"content-length: %d" % len(body))
        try:
            self._writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            await self._writer.drain()
        except OSError as error:
            raise UpstreamLost(f"{type(error).__name__}: {error}") from error
        while not self._has_head:
            await self._feed()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. UpstreamLost when it ends early."""
        while True:
            if self._chunks:
                data = b"".join(self._chunks)
                self._chunks.clear()
                yield data
            elif self._is_complete:
                self.was_used = True
                return
            else:
                await self._feed()

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([chunk async for chunk in self.chunks()])

    def abort(self) -> None:
        """Drop it now; whoever reads gets UpstreamLost."""
        self._writer.transport.abort()
        self._reader.feed_eof()

    async def _feed(self) -> None:
        try:
            data = await self._reader.read(READ_BYTES)
            if data:
                self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as error:
            raise UpstreamLost(f"{type(error).__name__}: {error}") from error
        if not data and not self._is_complete:
            raise UpstreamLost("the connection was closed")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200  # 100 Continue is not the answer

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        self._is_complete = self._has_head


class Pool:
    """Connections to one replica: idle ones to be used again, and all that are open, to be dropped when it is lost."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: list[Connection] = []
        self._open: dict[Connection, None] = {}

    async def request(
        self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> Connection:
        """Send a request; the connection with the head of its response. UpstreamLost. An idle connection that the
        replica closed meanwhile is replaced. Give it back with `release`."""
        own = [(b"host", self.address.netloc.encode()), *headers]
        while True:
            connection = self._idle.pop() if self._idle else await self._connect()
            self._open[connection] = None
            try:
                await connection.send(method, target, own, body)
            except UpstreamLost:
                self.release(connection)
                if not connection.was_used or connection.status:
                    raise
            except BaseException:
                self.release(connection)
                raise
            else:
                return connection

    def release(self, connection: Connection) -> None:
        """Keep it if its exchange is complete, else close it."""
        if self._open.pop(connection, True) is None and connection.is_reusable and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.abort()

    def abort(self) -> None:
        """Drop every connection: who waits for an answer learns that none comes."""
        for connection in [*self._open, *self._idle]:
            connection.abort()
        self._idle.clear()

    async def _connect(self) -> Connection:
        address = self.address
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                streams = await asyncio.open_connection(address.host, address.port, ssl=address.is_tls or None)
        except (OSError, TimeoutError) as error:
            raise UpstreamLost(f"{address.url} cannot be reached: {error or 'it does not answer'}") from error
        return Connection(*streams)
