"""What a format is made of. A format is data: the constraint, the incremental parser and the renderer are generated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
"""Both are read in every format whose call is one JSON object; a spec says which of them is written."""
NAME_KEY = "name"


class ArgumentTags(msgspec.Struct, frozen=True, kw_only=True):
    """Around each argument (`begin` NAME `name_end` VALUE `end`), and behind the last (`close`)."""

    begin: str
    name_end: str
    end: str
    close: str


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a model writes tool calls:

        begin  call_begin CALL call_end  separator  call_begin CALL call_end  ...  end

    CALL is one JSON object {"name": ..., arguments_key: {...}}, or, where `name_end` is set, the bare name, `name_end`
    and the arguments: a JSON object, or each between `argument_tags`. White space in these strings is written as it is
    and read as any amount of it.
    """

    name: str
    marks: tuple[str, ...]
    """A chat template that holds all of them speaks this format."""
    begin: str = ""
    call_begin: str = ""
    arguments_key: str = "arguments"
    name_end: str = ""
    argument_tags: ArgumentTags | None = None
    call_end: str = ""
    separator: str = "\n"
    end: str = ""
    is_bare: bool = False
    """A message may begin with a call, without `begin`."""
    result_begin: str = "<tool_response>\n"
    result_end: str = "\n</tool_response>"
    """Around a tool's result, where the chat template does not know tools."""
    arguments_are_text: bool = False
    """The chat template adds the arguments of earlier calls to strings; others want an object."""
    id_prefix: str = "call_"
    num_id_characters: int = 24

    @property
    def trigger(self) -> str:
        """The first characters of a section of calls: what ends the free text."""
        return (self.begin or self.call_begin).split()[0]

    @property
    def texts(self) -> tuple[str, ...]:
        """Every string that the model writes around names and arguments."""
        tags = self.argument_tags
        around = () if tags is None else (tags.begin, tags.name_end, tags.end, tags.close)
        return (self.begin, self.call_begin, self.name_end, *around, self.call_end, self.separator, self.end)


class ReasoningFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a model sets its reasoning apart: once, at the beginning of its answer."""

    name: str
    marks: tuple[str, ...]
    begin: str
    end: str


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. `parameters` is a JSON schema whose instances are objects."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = {}
    is_strict: bool = False

    @property
    def texts(self) -> frozenset[str]:
        """The parameters whose values can only be strings."""
        properties = self.parameters.get("properties", {})
        return frozenset(name for name, schema in properties.items() if is_text(schema))


class Call(msgspec.Struct, frozen=True):
    """A call as text: `arguments` is a JSON object."""

    name: str
    arguments: str


def is_text(schema: Any) -> bool:
    """Whether all that a parameter's schema allows are strings."""
    if not isinstance(schema, Mapping):
        return False
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return all(isinstance(value, str) for value in values)
    return schema.get("type") == "string"


def as_terminal(expression: str) -> str:
    """A regular expression as a Lark terminal: a slash would end it."""
    return "/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", expression) + "/"
