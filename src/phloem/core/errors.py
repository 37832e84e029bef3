"""The error tree: three trunks, one leaf per remedy.

PhloemError
|-- CallerError          the caller's fault: fix the request, the option or the file and try again
|   |-- InvalidRequest       a field of a request is wrong                    HTTP 400
|   |   `-- ContextLengthExceeded   the prompt does not fit the context      HTTP 400
|   |-- Unauthorized         the API key is missing or wrong                  HTTP 401
|   |-- UnknownModel         no model of that name is served                  HTTP 404
|   |-- ConfigError          an option is wrong                               exit 2
|   `-- ModelError           a model file or folder cannot be used            exit 2
|-- RequestFailed        this request failed; the engine goes on
|   |-- Overloaded           the queue is full: try again later               HTTP 503
|   `-- RequestAborted       the request was ended before it was finished     HTTP 499
`-- EngineDead           the engine is gone; every open request fails         HTTP 503
"""

from __future__ import annotations


class PhloemError(Exception):
    """Root of every error this package raises on purpose.

    `code` is a stable machine-readable word; `status` the HTTP status it maps to; `field` names the request field,
    option or file at fault where there is one.
    """

    code = "internal_error"
    status = 500

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class CallerError(PhloemError):
    """The caller's fault."""

    code = "invalid_request"
    status = 400


class InvalidRequest(CallerError):
    """A field of a request is malformed or out of range."""

    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """The prompt alone, or the prompt with `max_tokens`, is longer than the model's context."""

    code = "context_length_exceeded"


class Unauthorized(CallerError):
    """The API key is missing or wrong."""

    code = "invalid_api_key"
    status = 401


class UnknownModel(CallerError):
    """The request names a model that this server does not serve."""

    code = "model_not_found"
    status = 404


class ConfigError(CallerError):
    """An option is unknown, malformed or contradicts another."""

    code = "invalid_option"


class ModelError(CallerError):
    """A model file or folder is missing, truncated, corrupt or of an unknown architecture."""

    code = "invalid_model"


class RequestFailed(PhloemError):
    """This request failed; the engine goes on serving others."""

    code = "request_failed"


class Overloaded(RequestFailed):
    """The queue is full. `retry_after_s` is the server's estimate of when to try again, in seconds."""

    code = "overloaded"
    status = 503

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class RequestAborted(RequestFailed):
    """The request was ended by the caller, or by shutdown, before it was finished."""

    code = "aborted"
    status = 499


class EngineDead(PhloemError):
    """The engine process is gone; nothing more will be answered until it is started again."""

    code = "engine_dead"
    status = 503
