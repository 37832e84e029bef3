"""OpenAI chat messages as the templates of the field expect them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from phloem.core.errors import InvalidRequest

Message = dict[str, Any]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def parse_messages(
    messages: Sequence[Mapping[str, Any]], *, template_source: str, arguments_as_text: bool = False
) -> list[Message]:
    """A fresh copy of `messages`: null fields left out, text parts joined by newlines, tool arguments as objects, or
    as JSON text with `arguments_as_text`.

    InvalidRequest, naming the field: an empty list, a role that neither the API nor the template knows (it could spell
    a control token), a message without content or tool calls, a part that is not text.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidRequest("must be a list of at least one message", field="messages")
    return [
        _message(message, f"messages[{index}]", template_source, arguments_as_text)
        for index, message in enumerate(messages)
    ]


def _message(message: Mapping[str, Any], field: str, template_source: str, arguments_as_text: bool) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidRequest("must be an object with a role and a content", field=field)
    parsed = {key: value for key, value in message.items() if value is not None}
    role = parsed.get("role")
    if not isinstance(role, str) or (
        role not in ROLES and not re.search(f"['\"]{re.escape(role)}['\"]", template_source)
    ):
        raise InvalidRequest(f"must be one of {', '.join(sorted(ROLES))}", field=f"{field}.role")
    if "content" in parsed:
        parsed["content"] = _content(parsed["content"], f"{field}.content")
    elif role != "assistant":
        raise InvalidRequest("must be a string or a list of text parts", field=f"{field}.content")
    if "tool_calls" in parsed:
        parsed.setdefault("content", None)  # what templates ask of a message that is calls and nothing else
        parsed["tool_calls"] = _tool_calls(parsed["tool_calls"], f"{field}.tool_calls", arguments_as_text)
    return parsed


def _content(content: Any, field: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidRequest("must be a string or a list of text parts", field=field)
    return "\n".join(_part(part, f"{field}[{index}]") for index, part in enumerate(content))


def _part(part: Any, field: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise InvalidRequest(f"parts of type {kind!r} are not supported: this model takes text only", field=field)
    text = part.get(key)
    if not isinstance(text, str):
        raise InvalidRequest("must be a string", field=f"{field}.{key}")
    return text


def _tool_calls(calls: Any, field: str, arguments_as_text: bool) -> list[Message]:
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise InvalidRequest("must be a list of objects", field=field)
    return [_tool_call(call, f"{field}[{index}]", arguments_as_text) for index, call in enumerate(calls)]


def _tool_call(call: Mapping[str, Any], field: str, arguments_as_text: bool) -> Message:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return dict(call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise InvalidRequest(f"must be a JSON object ({error})", field=f"{field}.function.arguments") from error
    if arguments_as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
