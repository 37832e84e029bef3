"""A JSON schema's keywords, judged on their face: an error that says where, not one from deep inside a grammar."""

from __future__ import annotations

from typing import Any

from phloem.core.errors import InvalidRequest

MAX_DEPTH = 64
TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
ONE = frozenset(
    {"additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems",
     "unevaluatedProperties", "additionalItems"}
)  # fmt: skip
LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
NUMBERS = frozenset({"minimum", "maximum", "multipleOf"})
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
TEXTS = frozenset({"pattern", "format", "$ref"})


def check_schema(schema: Any, *, field: str) -> None:
    """InvalidRequest, naming the keyword, for one whose value no version of JSON Schema allows. Unknown keywords say
    nothing, as in JSON Schema."""
    waiting: list[tuple[Any, str, int]] = [(schema, field, 0)]
    while waiting:
        one, where, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _wrong(where, f"nested more than {MAX_DEPTH} deep")
        if isinstance(one, bool):
            continue
        if not isinstance(one, dict):
            raise _wrong(where, "a schema is an object, true or false")
        for keyword, value in one.items():
            waiting += [(inner, place, depth + 1) for inner, place in _keyword(keyword, value, f"{where}.{keyword}")]


def _keyword(keyword: str, value: Any, field: str) -> list[tuple[Any, str]]:
    """The schemas in a keyword's value, with their places."""
    if keyword in MAPS:
        if not isinstance(value, dict):
            raise _wrong(field, "an object of schemas")
        return [(inner, f"{field}.{name}") for name, inner in value.items()]
    if keyword in LISTS or (keyword == "items" and isinstance(value, list)):
        if not isinstance(value, list) or not value:
            raise _wrong(field, "a list of at least one schema")
        return [(inner, f"{field}[{index}]") for index, inner in enumerate(value)]
    if keyword in ONE:
        return [(value, field)]
    _check_value(keyword, value, field)
    return []


def _check_value(keyword: str, value: Any, field: str) -> None:
    if keyword == "type":
        names = value if isinstance(value, list) and value else [value]
        if not all(isinstance(name, str) and name in TYPES for name in names):
            raise _wrong(field, f"one of {', '.join(sorted(TYPES))}, or a list of them")
    elif keyword == "required" and not isinstance(value, bool):  # a boolean in the drafts before 4
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise _wrong(field, "a list of property names")
    elif keyword == "enum" and (not isinstance(value, list) or not value):
        raise _wrong(field, "a list of at least one value")
    elif keyword in NUMBERS and not (isinstance(value, int | float) and not isinstance(value, bool)):
        raise _wrong(field, "a number")
    elif keyword in COUNTS and not _is_count(value):
        raise _wrong(field, "a number of at least 0")
    elif keyword in TEXTS and not isinstance(value, str):
        raise _wrong(field, "a text")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == int(value)


def _wrong(field: str, wanted: str) -> InvalidRequest:
    place = field if len(field) <= 200 else field[:200] + " ..."
    return InvalidRequest(f"{place}: not a JSON schema: {wanted}", field=place)
