"""Errors as the OpenAI API writes them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import msgspec

from phloem.core import errors, wire
from phloem.core.errors import PhloemError

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_BY_CODE: dict[str, type[PhloemError]] = {
    cls.code: cls
    for cls in (
        errors.InvalidRequest,
        errors.ContextLengthExceeded,
        errors.RequestFailed,
        errors.Overloaded,
        errors.RequestAborted,
        errors.EngineDead,
    )
}


class Unsupported(errors.InvalidRequest):
    """A field asks for something this server does not do."""

    code = "unsupported_value"


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong; `param` names the request field at fault, where there is one."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def error_body(error: PhloemError) -> ErrorBody:
    """The typed error as a body."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return ErrorBody(ErrorDetail(message=error.message, type=kind, param=error.field, code=error.code))


def failure_of(event: wire.Failed) -> PhloemError:
    """The engine's terminal failure as the exception it names."""
    return _BY_CODE.get(event.code, errors.RequestFailed)(event.message)
