"""What every answer of the server carries, and which requests get none."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class Guard:
    """Refuses names that are not this server's (DNS rebinding) and writes that another site's page sends."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["method"])
        answer = PlainTextResponse(refusal, status_code=403) if refusal else self._app
        await answer(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, method: str) -> str:
        host = _name(headers.get("host", ""))
        if self._hosts and host not in self._hosts:
            return f"{host!r} is not a name of this server; start it with --host {host} if it should be\n"
        origin = headers.get("origin")
        if method not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return "this page may not write here\n"
        return ""


def _name(host: str) -> str:
    """Without the port."""
    return urlsplit(f"//{host}").hostname or ""
