"""Around every exchange: a request id in and out, and the API key."""

from __future__ import annotations

import hmac
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phloem.core.errors import Unauthorized
from phloem.serve.http.errors import error_response

PUBLIC_PATHS = frozenset({"/health", "/ready", "/metrics", "/docs", "/openapi.json"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Frame:
    """ASGI middleware. Echoes X-Request-Id, or makes one; answers 401 to whoever does not know the key."""

    def __init__(self, app: ASGIApp, *, api_key: str | None) -> None:
        self._app = app
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        app = self._app if self._may_pass(scope["path"], headers) else error_response(_unauthorized())
        await app(scope, receive, send_with_id)

    def _may_pass(self, path: str, headers: Headers) -> bool:
        if self._expected is None or path in PUBLIC_PATHS:
            return True
        return hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), self._expected)


def _unauthorized() -> Unauthorized:
    return Unauthorized("the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")
