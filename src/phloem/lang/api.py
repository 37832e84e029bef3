"""The author's words: `@program`, `gen`, `select`, and turns as expressions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from phloem.lang.ir import Gen, Method, Parse
from phloem.lang.pieces import GenPiece, Said, SelectPiece, TextPiece, TurnPiece, pieces_of
from phloem.lang.trace import ProgramFunction
from phloem.lang.traced import lift, plain
from phloem.lang.where import trace_error

INTEGER, NUMBER = r"-?(0|[1-9][0-9]{0,14})", r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?"


def program(function: Callable[..., Any]) -> ProgramFunction:
    """Make a program of a function whose first argument is the state."""
    return ProgramFunction(function)


def gen(
    name: str,
    *,
    max_tokens: int = 128,
    stop: str | Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    regex: str | None = None,
    json_schema: dict[str, Any] | None = None,
    choices: Sequence[str] | None = None,
    grammar: str | None = None,
    type: type | None = None,
) -> Said:
    """Let the model go on; what it says becomes variable `name`.

    `type` int, float, bool, or a msgspec.Struct: constrains the text and converts the value. At most one of `type`,
    `regex`, `json_schema`, `choices` and `grammar`. Temperature 0, the default, takes the likeliest token.
    """
    constraints: dict[str, Any] = {"regex": regex, "json_schema": json_schema, "choices": choices, "grammar": grammar}
    parse: Parse = "text" if json_schema is None else "json"
    if type is not None:
        if any(each is not None for each in constraints.values()):
            raise trace_error("gen: type, or regex, json_schema, choices or grammar; not both")
        kind, value, parse = _constraint_of(type)
        constraints[kind] = value
    known = plain(
        {"name": name, "max_tokens": max_tokens, "stop": [stop] if isinstance(stop, str) else list(stop),
         "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "seed": seed, "parse": parse}
    )  # fmt: skip
    constraints = {key: _json(value) for key, value in constraints.items() if value is not None}
    try:
        node = msgspec.convert({"op": "gen", **known, **constraints}, Gen)
    except msgspec.ValidationError as error:
        raise trace_error(f"gen: {error}") from error
    is_struct = type is not None and parse == "json"
    return Said([GenPiece(node, type if is_struct else None)])


def select(name: str, choices: Any, *, method: Method = "token_length_normalized") -> Said:
    """Append the choice that the model finds likeliest; it becomes variable `name`."""
    return Said([SelectPiece(name, lift(choices), method)])


def commutable(text: Any) -> Said:
    """A text that may change places with its commutable neighbours: what is always the same then comes first."""
    return Said([TextPiece(piece.value, True) if isinstance(piece, TextPiece) else piece for piece in pieces_of(text)])


def system(*said: Any) -> Said:
    """A system turn."""
    return Said([TurnPiece("system", Said(pieces_of(said)))])


def user(*said: Any) -> Said:
    """A user turn."""
    return Said([TurnPiece("user", Said(pieces_of(said)))])


def assistant(*said: Any) -> Said:
    """An assistant turn."""
    return Said([TurnPiece("assistant", Said(pieces_of(said)))])


def image(*_: Any) -> NoReturn:
    """Refused."""
    raise trace_error("images are not supported: this engine takes text only; describe the image in words")


def _constraint_of(kind: type) -> tuple[str, Any, Parse]:
    if kind is bool:
        return "choices", ["true", "false"], "boolean"
    if kind is int:
        return "regex", INTEGER, "integer"
    if kind is float:
        return "regex", NUMBER, "number"
    try:
        return "json_schema", _closed(msgspec.json.schema(kind)), "json"
    except TypeError as error:
        raise trace_error(
            f"gen: type {kind!r} is none of int, float, bool and msgspec.Struct types ({error})"
        ) from error


def _closed(schema: Any) -> Any:
    """The schema with nothing in its objects but what the type has."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if "properties" in schema else closed


def _json(value: Any) -> Any:
    """As JSON would carry it."""
    try:
        return json.loads(json.dumps(list(value) if isinstance(value, tuple) else value))
    except (TypeError, ValueError) as error:
        raise trace_error(f"gen: a constraint must be JSON ({error})") from error
