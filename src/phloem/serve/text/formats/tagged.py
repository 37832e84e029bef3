"""Calls whose arguments stand one by one between tags, as plain text: what reads, writes and constrains them.

    NAME name_end  begin PARAMETER name_end VALUE end  begin PARAMETER name_end VALUE end ...  close

A text is written as it is, any other value as JSON. So a reader must know which parameters are texts; where it does
not, what is JSON is read as JSON. One line break at each edge of a value belongs to the tags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from phloem.serve.text.formats.literal import JSON_SPACE, Literal
from phloem.serve.text.formats.spec import ArgumentTags, as_terminal, is_text

MAX_NAME_CHARACTERS = 256
DEFINITIONS = ("$defs", "definitions")
TEXT = "/(?s:.*)/"


class TaggedBody:
    """One call, read character by character (body.Body). `texts`: by function, its parameters that are texts."""

    def __init__(self, tags: ArgumentTags, *, texts: Mapping[str, frozenset[str]]) -> None:
        self._tags, self._texts = tags, texts
        self._name = self._parameter = self._value = self.held = ""
        self._has_name = self._has_begun = False
        self._num_arguments = 0
        self._waits_for = [Literal(tags.name_end)]
        self._read: Callable[[str], str | None] = self._read_name
        self.is_done = False

    @property
    def opened(self) -> str | None:
        return self._name if self._has_begun else None

    @property
    def rest(self) -> str:
        """What an answer that is cut here has of the argument that it breaks off in."""
        if self._read != self._read_value:
            return ""
        text = json.dumps(self._value.removeprefix("\n"), ensure_ascii=False)[:-1]
        return self._key() + (text if self._is_text else self._value.strip())

    def push(self, character: str) -> str | None:
        return self._read(character)

    def _read_name(self, character: str) -> str | None:
        end = self._waits_for[0]
        if not self._has_name:
            if character.isalnum() or character in "_-.:/":
                self._name += character
                return "" if len(self._name) <= MAX_NAME_CHARACTERS else None
            if not self._name:
                return "" if character in JSON_SPACE else None
            self._has_name = True
        if not end.push(character):
            return None
        if end.is_done:
            self._expect_tag()
        return ""

    def _expect_tag(self) -> None:
        self._waits_for, self.held = [Literal(self._tags.begin), Literal(self._tags.close)], ""
        self._read = self._read_tag

    def _read_tag(self, character: str) -> str | None:
        self._waits_for = [literal for literal in self._waits_for if literal.push(character)]
        if not self._waits_for:
            return None
        self.held += character
        if not self._waits_for[0].is_done:
            return ""
        self._has_begun, self.held = True, ""
        if self._waits_for[0].text == self._tags.close:
            self.is_done = True
            return "}" if self._num_arguments else "{}"
        self._parameter, self._read = "", self._read_parameter
        return ""

    def _read_parameter(self, character: str) -> str | None:
        self._parameter += character
        if self._parameter.endswith(self._tags.name_end.strip()):
            self._parameter = self._parameter.removesuffix(self._tags.name_end.strip())
            self._value, self._read = "", self._read_value
        return "" if len(self._parameter) <= MAX_NAME_CHARACTERS else None

    def _read_value(self, character: str) -> str:
        self._value += character
        if not self._value.endswith(self._tags.end.strip()):
            return ""
        value = self._value.removesuffix(self._tags.end.strip()).removeprefix("\n").removesuffix("\n")
        argument = self._key() + (json.dumps(value, ensure_ascii=False) if self._is_text else as_json(value))
        self._num_arguments += 1
        self._expect_tag()
        return argument

    def _key(self) -> str:
        return ("{" if not self._num_arguments else ", ") + json.dumps(self._parameter, ensure_ascii=False) + ": "

    @property
    def _is_text(self) -> bool:
        return self._parameter in self._texts.get(self._name, ())


def as_json(value: str) -> str:
    """A value of unknown type: itself where it is JSON, and no string; otherwise a string."""
    try:
        is_json = not isinstance(json.loads(value, parse_constant=_no_constant), str)
    except (ValueError, RecursionError):
        is_json = False
    return value.strip() if is_json else json.dumps(value, ensure_ascii=False)


def write_arguments(tags: ArgumentTags, arguments: str) -> str:
    """The arguments (a JSON object) as the model writes them."""
    parts = []
    for name, value in json.loads(arguments).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        parts.append(f"{tags.begin}{name}{tags.name_end}{text}{tags.end}")
    return "".join(parts) + tags.close


def argument_rules(
    rule: str,
    tags: ArgumentTags,
    schema: Mapping[str, Any],
    *,
    quote: Callable[[str], str],
    as_json_rule: Callable[[Any], str],
) -> list[str]:
    """The Lark rule of that name for arguments of a schema, in its order, and those that it needs. Arguments that the
    schema does not name are free where it leaves that open. `quote` writes a string, `as_json_rule` a value."""
    definitions = {key: schema[key] for key in DEFINITIONS if key in schema}
    parts, rules = [], list[str]()
    for index, (name, inner) in enumerate(schema.get("properties", {}).items()):
        head = quote(tags.begin + name + tags.name_end)
        if not is_text(inner):
            schema_of_value = {**inner, **definitions} if isinstance(inner, Mapping) else inner
            value = f"{as_json_rule(schema_of_value)} {quote(tags.end)}"
        elif values := [inner["const"]] if "const" in inner else inner.get("enum"):
            value = f"({' | '.join(quote(each) for each in values)}) {quote(tags.end)}"
        else:
            value = f"{rule}_text_{index}"
            rules.append(f"{value}[lazy]: {_expression(inner)} {quote(tags.end)}")
        parts.append(f"({head} {value})" + ("" if name in schema.get("required", ()) else "?"))
    if schema.get("additionalProperties") is not False:
        parts.append("argument*")
    return [f"{rule}: {' '.join([*parts, quote(tags.close)])}", *rules]


def common_rules(tags: ArgumentTags, *, quote: Callable[[str], str]) -> list[str]:
    """What the rules of all calls name."""
    return [
        f"argument: {quote(tags.begin)} /[^>\\n]+/ {quote(tags.name_end)} text",
        f"text[lazy]: {TEXT} {quote(tags.end)}",
    ]


def _expression(schema: Mapping[str, Any]) -> str:
    """The Lark terminal of a string's schema: its length and its pattern."""
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    both = [f"/(?s:.{{{least},{most}}})/" if least or most != "" else TEXT]
    if (pattern := schema.get("pattern")) is not None:
        before, after = ("" if pattern.startswith("^") else "(?s:.*)"), ("" if pattern.endswith("$") else "(?s:.*)")
        both.append(as_terminal(f"{before}(?:{pattern.removeprefix('^').removesuffix('$')}){after}"))
    return f"({' & '.join(both)})"


def _no_constant(name: str) -> float:
    raise ValueError(name)
