"""From a format and its functions to a grammar: what a model may write when it calls them.

The grammar is Lark as llguidance reads it. Free text ends at the format's trigger (a lazy terminal, or the one token
that no text can contain); from there on only a call can follow. A tag that is a control token of the vocabulary is
named by its id, any other is the text that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from phloem.core.request import Constraint
from phloem.serve.text.formats.spec import Function, ReasoningFormat, ToolFormat, as_terminal
from phloem.serve.text.formats.tagged import argument_rules, common_rules

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As the chat templates write JSON. Free white space would let a weak model go on with it forever."""
OPEN_SCHEMA_KEYS = frozenset(
    {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "not", "if"}
)
OPTIONS = "x-guidance"
"""The key of a schema under which the grammar library takes options: the server's to set, not the caller's."""
ANY_OBJECT = {"type": "object"}


def tool_constraint(
    format: ToolFormat,
    functions: Sequence[Function],
    *,
    is_forced: bool,
    max_calls: int | None,
    with_schemas: bool,
    special_ids: Mapping[str, int],
    reasoning: ReasoningFormat | None = None,
    reasoning_has_begun: bool = False,
) -> Constraint:
    """An answer in which every call is one of `functions`, in the format's spelling.

    `is_forced`: the answer is calls and nothing else; otherwise free text, which may end in calls. `with_schemas`: the
    arguments follow every function's schema, otherwise only those of the strict ones. `reasoning` may come first, and
    has to where the prompt opened it. `max_calls` None: any number.
    """
    write = _Writer(special_ids)
    opening = format.begin + format.call_begin
    calls = " | ".join(f"call_{index}" for index in range(len(functions)))
    more = f"({write.text(format.separator + format.call_begin)} call {write.text(format.call_end)})"
    repeats = "*" if max_calls is None else f"{{0,{max_calls - 1}}}" if max_calls > 1 else None
    section = [
        write.text(opening.removeprefix(format.trigger)),
        "call",
        write.text(format.call_end),
        more + repeats if repeats else "",
        write.text(format.end),
    ]
    rules = ["%llguidance {}", *_answer(format, write, is_forced=is_forced)]
    rules += _reasoning(write, reasoning, has_begun=reasoning_has_begun, is_optional=not is_forced)
    rules += [f"calls: {_joined(section)}", f"call: {calls}"]
    if format.argument_tags is not None:
        rules += common_rules(format.argument_tags, quote=write.text)
    for index, function in enumerate(functions):
        head, tail = _around_arguments(format, function)
        schema = arguments_schema(function) if with_schemas or function.is_strict else ANY_OBJECT
        if format.argument_tags is None:
            arguments = _json(schema)
        else:
            arguments = f"arguments_{index}"
            rules += argument_rules(arguments, format.argument_tags, schema, quote=write.text, as_json_rule=_json)
        rules.append(f"call_{index}: {_joined([write.text(head), arguments, write.text(tail)])}")
    return Constraint("structural", "\n".join(rules) + "\n")


def after_reasoning(constraint: Constraint, reasoning: ReasoningFormat, special_ids: Mapping[str, int]) -> Constraint:
    """`constraint` for what follows the reasoning that the prompt opened."""
    match constraint.kind:
        case "json_schema":
            answer = _json(json.loads(constraint.text))
        case "json_object":
            answer = _json(ANY_OBJECT)
        case "regex":
            answer = as_terminal(constraint.text)
        case "choice":
            answer = "(" + " | ".join(quoted(choice) for choice in json.loads(constraint.text)) + ")"
        case _:
            answer = "%grammar " + json.dumps(constraint.text)
    write = _Writer(special_ids)
    rules = ["%llguidance {}", "start: reasoning answer", f"answer: {answer}"]
    rules += _reasoning(write, reasoning, has_begun=True, is_optional=False)
    return Constraint("structural", "\n".join(rules) + "\n")


def arguments_schema(function: Function) -> dict[str, Any]:
    """The schema that generated arguments follow: an object, with no properties but the declared ones where the schema
    leaves that open and says nothing else about further ones."""
    schema = {"type": "object", **function.parameters}
    schema.pop(OPTIONS, None)
    if not OPEN_SCHEMA_KEYS & schema.keys():
        schema = {"properties": {}, **schema, "additionalProperties": False}
    return schema


def quoted(text: str) -> str:
    """A Lark string."""
    return json.dumps(text, ensure_ascii=False)


class _Writer:
    """Writes fixed text, with control tokens by id."""

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self._ids = special_ids
        tags = sorted(special_ids, key=len, reverse=True)
        self._tags = re.compile("(" + "|".join(map(re.escape, tags)) + ")" if tags else "(?!)()")

    def text(self, text: str) -> str:
        """`text` as a sequence of Lark strings and tokens; empty for an empty text."""
        parts = [part for part in self._tags.split(text) if part]
        return " ".join(f"<[{self._ids[part]}]>" if part in self._ids else quoted(part) for part in parts)

    def up_to(self, text: str, tag: str) -> str:
        """The body of a rule for the terminal `text` up to the first `tag`, which it includes."""
        return f": {text} {self.text(tag)}" if tag in self._ids else f"[lazy]: {text} {quoted(tag)}"


def _answer(format: ToolFormat, write: _Writer, *, is_forced: bool) -> list[str]:
    """The start rule, and free text."""
    if is_forced:
        trigger = "" if format.is_bare else write.text(format.trigger)
        return [f"start: {_joined(['reasoning', trigger, 'calls'])}"]
    begins = " | calls" if format.is_bare else ""
    text = r"/([^\s{](?s:.*))?/" if format.is_bare else "/(?s:.*)/"
    return [
        f"start: reasoning (TEXT | head calls{begins})",
        f"TEXT: {text}",
        f"head{write.up_to('TEXT', format.trigger)}",
    ]


def _reasoning(write: _Writer, format: ReasoningFormat | None, *, has_begun: bool, is_optional: bool) -> list[str]:
    """The rule `reasoning`. Free text may itself begin with reasoning that the prompt did not open."""
    if format is None or (is_optional and not has_begun):
        return ['reasoning: ""']
    thought = "thought /[ \\n]{0,2}/"
    opened = thought if has_begun else f"({write.text(format.begin)} {thought})?"
    return [f"reasoning: {opened}", f"thought{write.up_to('/(?s:.*)/', format.end)}"]


def _around_arguments(format: ToolFormat, function: Function) -> tuple[str, str]:
    """What a call is written with, before and after its arguments."""
    if format.name_end:
        return function.name + format.name_end, ""
    name = json.dumps(function.name, ensure_ascii=False)
    return f'{{"name": {name}, "{format.arguments_key}": ', "}"


def _json(schema: Mapping[str, Any] | bool) -> str:
    known = schema if isinstance(schema, Mapping) else ({} if schema else {"not": {}})
    return "%json " + json.dumps({**known, OPTIONS: {**JSON_STYLE, **known.get(OPTIONS, {})}})


def _joined(parts: Sequence[str]) -> str:
    return " ".join(part for part in parts if part)
