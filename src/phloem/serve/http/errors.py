"""Errors of HTTP itself, and how every error of the tree becomes an answer."""

from __future__ import annotations

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from phloem.core.errors import CallerError, EngineDead, Overloaded, PhloemError, RequestAborted
from phloem.serve.openai.errors import error_body


class BodyTooLarge(CallerError):
    """The body is larger than the server reads."""

    code = "body_too_large"
    status = 413


class BodyTooSlow(CallerError):
    """The body did not arrive in time."""

    code = "body_timeout"
    status = 408


class UnsupportedMediaType(CallerError):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"
    status = 415


class UnknownPath(CallerError):
    """No route of that path."""

    code = "unknown_path"
    status = 404


class MethodNotAllowed(CallerError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405


class ClientGone(RequestAborted):
    """The client disconnected; nobody is left to answer."""


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as a JSON answer."""
    return Response(msgspec.json.encode(value), status_code=status, headers=headers, media_type="application/json")


def error_response(error: PhloemError, *, headers: dict[str, str] | None = None) -> Response:
    """A typed error as its answer, with Retry-After where trying again may help."""
    extra = dict(headers or {})
    match error:
        case Overloaded():
            extra["retry-after"] = str(error.retry_after_s)
        case EngineDead():
            extra["retry-after"] = "5"
    if error.status == 401:
        extra["www-authenticate"] = "Bearer"
    return json_response(error_body(error), status=error.status, headers=extra)


async def on_phloem_error(_: Request, error: Exception) -> Response:
    """Exception handler of the error tree."""
    assert isinstance(error, PhloemError)
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Exception handler of the router's own 404 and 405."""
    assert isinstance(error, HTTPException)
    path, headers = request.url.path[:200], dict(error.headers or {})
    if error.status_code == 404:
        return error_response(UnknownPath(f"there is no {path}; see /docs"), headers=headers)
    if error.status_code == 405:
        allowed = headers.get("Allow", "another method")
        return error_response(MethodNotAllowed(f"{path} takes {allowed}, not {request.method}"), headers=headers)
    return error_response(CallerError(error.detail), headers=headers)


async def on_defect(_: Request, error: Exception) -> Response:
    """Exception handler of last resort: our own mistake. The HTTP server logs the traceback, the client gets none."""
    return error_response(PhloemError("internal error; the server's log has the details"))
