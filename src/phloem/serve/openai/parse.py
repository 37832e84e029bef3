"""Bytes to a typed request, once. Whatever is wrong becomes an InvalidRequest that names the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from phloem.core.errors import InvalidRequest

T = TypeVar("T")

_MAX_DIAGNOSED_BYTES = 1 << 20
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")


def parse_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The request in `body`. Raises InvalidRequest."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(body) from error
    except msgspec.DecodeError as error:
        raise _malformed(body, str(error)) from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error


def _invalid_field(message: str) -> InvalidRequest:
    match = _PATH.search(message)
    path = match[1].removesuffix("[...]") if match else ""
    if missing := _MISSING.match(message):
        field = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"{field}: required, but missing", field=field)
    reason = message[: match.start()] if match else message
    return InvalidRequest(f"{path or 'the body'}: {reason}", field=path or None)


def _not_utf8(body: bytes) -> InvalidRequest:
    """msgspec counts from the start of the string that it was reading; the caller counts from the start of the body."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return InvalidRequest(f"the body is not valid UTF-8: {error.reason} at byte {error.start}")
    raise AssertionError("msgspec and Python agree on what UTF-8 is")


def _malformed(body: bytes, message: str) -> InvalidRequest:
    """Python's json reads NaN and lone surrogates, which JSON forbids, so it can say which field holds them."""
    generic = InvalidRequest(f"the body is not valid JSON: {message}")
    if not body.strip() or len(body) > _MAX_DIAGNOSED_BYTES:
        return generic if body.strip() else InvalidRequest("the body is empty; send a JSON object")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return generic
    for path, leaf in _leaves(value, ""):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            return InvalidRequest(f"{path}: {leaf} is not a JSON number; send a finite one", field=path)
        if isinstance(leaf, str) and not leaf.isascii() and re.search("[\ud800-\udfff]", leaf):
            where = path or "the body"
            return InvalidRequest(f"{where}: a lone surrogate is not text; send valid Unicode", field=path or None)
    return generic


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every scalar, and every key, with the path of the field it is in."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield path, key
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
