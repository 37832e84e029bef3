"""The fields that constrain an answer, in the spellings of OpenAI, vLLM and SGLang, to one Constraint.

A request may use one of them. Values are judged on their face here (types, JSON, size); whether a grammar can be made
of them is found out in the sandbox that launch gives to the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, get_args

import msgspec

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint, ConstraintKind, SamplingParams
from phloem.serve.openai.errors import Unsupported
from phloem.serve.openai.requests import ConstraintFields

MAX_CONSTRAINT_BYTES = 512 << 10
MAX_CHOICES = 4096
OPTIONS = "x-guidance"
"""The key of a schema under which the grammar library takes options: the server's to set, not the caller's."""


class ConstraintCheck(Protocol):
    """Whether a constraint can be served."""

    async def check(self, constraint: Constraint, *, field: str) -> None:
        """InvalidRequest, naming the field and the construct, when it cannot."""


class NamedConstraint(NamedTuple):
    """A constraint and the request field that it came in."""

    field: str
    constraint: Constraint


def read_constraint(fields: ConstraintFields) -> NamedConstraint | None:
    """The constraint of a request, if it has one. InvalidRequest for a malformed one, and for more than one."""
    given = [(name, value) for name in READERS if (value := getattr(fields, name)) is not None]
    found = [named for name, value in given if (named := READERS[name](name, value)) is not None]
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise InvalidRequest(f"{second}: {first} constrains the answer already; send one of them", field=second)
    return found[0] if found else None


def constraint_field(fields: ConstraintFields) -> str | None:
    """The field that constrains a request, once `read_constraint` has found it well formed."""
    is_text = fields.response_format is not None and fields.response_format.get("type") == "text"
    given = (name for name in READERS if getattr(fields, name) is not None)
    return next((name for name in given if not (is_text and name == "response_format")), None)


def constrained(sampling: SamplingParams, constraint: Constraint, *, field: str) -> SamplingParams:
    """The parameters with a constraint. InvalidRequest where others contradict it: the grammar ends the text."""
    judged(constraint, field=field)
    if sampling.min_tokens > 0:
        raise InvalidRequest(
            f"min_tokens: {field} says when the answer ends; leave one of them out", field="min_tokens"
        )
    if sampling.ignore_eos:
        raise InvalidRequest(
            f"ignore_eos: {field} says when the answer ends; leave one of them out", field="ignore_eos"
        )
    return msgspec.structs.replace(sampling, constraint=constraint)


def judged(constraint: Constraint, *, field: str) -> Constraint:
    """The constraint itself. InvalidRequest when it is of no known kind or too large."""
    if constraint.kind not in get_args(ConstraintKind) or not isinstance(constraint.text, str):
        raise InvalidRequest(f"{field}: {str(constraint.kind)[:40]!r} is no kind of constraint", field=field)
    if (
        len(constraint.text) > MAX_CONSTRAINT_BYTES
        or len(constraint.text.encode(errors="replace")) > MAX_CONSTRAINT_BYTES
    ):
        most = MAX_CONSTRAINT_BYTES >> 10
        raise InvalidRequest(
            f"{field}: at most {most} KB, not {len(constraint.text) >> 10}; make it smaller", field=field
        )
    return constraint


def _response_format(field: str, value: Any) -> NamedConstraint | None:
    entry = _object(field, value)
    match entry.get("type"):
        case "text":
            return None
        case "json_object":
            return NamedConstraint(field, Constraint("json_object"))
        case "json_schema":
            wrapper = _object(f"{field}.json_schema", entry.get("json_schema"), root=field)
            strict = wrapper.get("strict")
            if not isinstance(strict, bool | None):
                raise InvalidRequest(f"{field}.json_schema.strict: true or false, not {strict!r}", field=field)
            schema = wrapper.get("schema", {"type": "object"})
            return _from_schema(f"{field}.json_schema.schema", schema, root=field, is_lenient=strict is False)
        case None:
            raise InvalidRequest(f"{field}.type: missing; one of text, json_object, json_schema", field=field)
        case other:
            message = f"{field}.type: {str(other)[:40]!r} is not supported; use text, json_object or json_schema"
            raise Unsupported(message, field=field)


def _json(field: str, value: Any) -> NamedConstraint:
    return _from_schema(field, value, root=field)


def _regex(field: str, value: Any) -> NamedConstraint:
    return NamedConstraint(_root(field), Constraint("regex", _text(field, value)))


def _grammar(field: str, value: Any) -> NamedConstraint:
    return NamedConstraint(_root(field), Constraint("grammar", _text(field, value)))


def _choice(field: str, value: Any) -> NamedConstraint:
    is_list = isinstance(value, list) and all(isinstance(choice, str) for choice in value)
    if not is_list or not 0 < len(value) <= MAX_CHOICES or "" in value:
        raise InvalidRequest(f"{field}: a list of 1 to {MAX_CHOICES} texts, none empty", field=_root(field))
    return NamedConstraint(_root(field), Constraint("choice", msgspec.json.encode(value).decode()))


def _json_object(field: str, value: Any) -> NamedConstraint | None:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{field}: true or false, not {str(value)[:40]!r}", field=_root(field))
    return NamedConstraint(_root(field), Constraint("json_object")) if value else None


def _structured_outputs(field: str, value: Any) -> NamedConstraint | None:
    entry = {name: each for name, each in _object(field, value).items() if each is not None}
    unknown = [name for name in entry if name not in STRUCTURED and name not in IGNORED]
    if unknown:
        message = f"{field}.{unknown[0][:40]}: not supported; one of {', '.join(STRUCTURED)}"
        raise Unsupported(message, field=field)
    read = [STRUCTURED[name](f"{field}.{name}", each) for name, each in entry.items() if name in STRUCTURED]
    found = [named for named in read if named is not None]
    if len(found) != 1:
        raise InvalidRequest(f"{field}: exactly one of {', '.join(STRUCTURED)}", field=field)
    return found[0]


def _from_schema(field: str, value: Any, *, root: str, is_lenient: bool = False) -> NamedConstraint:
    """A JSON schema, as an object or as its text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise InvalidRequest(f"{field}: not JSON ({error})", field=_root(root)) from error
    if value is True:
        value = {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field}: a JSON schema is an object, not {str(value)[:40]!r}", field=_root(root))
    value = {name: each for name, each in value.items() if name != OPTIONS}
    value |= {OPTIONS: {"lenient": True}} if is_lenient else {}
    return NamedConstraint(_root(root), Constraint("json_schema", msgspec.json.encode(value).decode()))


def _object(field: str, value: Any, *, root: str | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field}: an object, not {str(value)[:40]!r}", field=root or field)
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{field}: a text, not empty", field=_root(field))
    return value


def _root(field: str) -> str:
    """The field of the body that a path begins with."""
    return field.partition(".")[0]


Reader = Callable[[str, Any], NamedConstraint | None]

STRUCTURED: dict[str, Reader] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _json_object,
}
IGNORED = frozenset({"disable_any_whitespace", "disable_fallback"})
"""Options of vLLM that do not matter here: there is one back end, and it writes JSON in one way."""

READERS: dict[str, Reader] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "json_schema": _json,
    "regex": _regex,
    "ebnf": _grammar,
}
"""Fields of a request body, in the order they are looked at."""
