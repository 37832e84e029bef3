"""Tool definitions, calls and results as text, for chat templates that do not know tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from phloem.serve.text.formats.spec import Call, Function, ToolFormat
from phloem.serve.text.formats.tagged import write_arguments

Message = dict[str, Any]


def render_calls(format: ToolFormat, calls: Sequence[Call]) -> str:
    """The text in which a model makes `calls`."""
    begin = "" if format.is_bare else format.begin
    return begin + format.separator.join(render_call(format, call) for call in calls) + format.end


def render_call(format: ToolFormat, call: Call) -> str:
    """One call, without what stands around all of them."""
    if format.argument_tags is not None:
        body = call.name + format.name_end + write_arguments(format.argument_tags, call.arguments)
    elif format.name_end:
        body = call.name + format.name_end + call.arguments
    else:
        name = json.dumps(call.name, ensure_ascii=False)
        body = f'{{"name": {name}, "{format.arguments_key}": {call.arguments}}}'
    return format.call_begin + body + format.call_end


def function_json(function: Function) -> Message:
    """A function as chat templates expect it."""
    known = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return {"type": "function", "function": {key: value for key, value in known.items() if value is not None}}


def instructions(format: ToolFormat, functions: Sequence[Function]) -> str:
    """What a model is told that brings no words for it: the functions, and how to call them."""
    listed = "\n".join(json.dumps(function_json(function), ensure_ascii=False) for function in functions)
    example = render_calls(format, [Call("function-name", '{"argument-name": "value"}')])
    return (
        "You can call these functions:\n"
        f"{listed}\n"
        "To call a function, answer with its name and a JSON object of its arguments in exactly this form:\n"
        f"{example}"
    )


def plain_messages(
    format: ToolFormat, messages: Sequence[Mapping[str, Any]], functions: Sequence[Function]
) -> list[Message]:
    """The conversation without tools: definitions in the system message, calls in the text of the assistant, results
    in a message of the user. `messages` are JSON objects whose content is a string or a list of text parts."""
    plain: list[Message] = []
    follows_result = False
    for message in messages:
        if message["role"] == "tool":
            result = format.result_begin + _text(message) + format.result_end
            if follows_result:  # many templates want user and assistant to alternate
                plain[-1]["content"] += "\n" + result
            else:
                plain.append({"role": "user", "content": result})
        elif message.get("tool_calls"):
            plain.append(_with_calls(format, message))
        else:
            plain.append(dict(message))
        follows_result = message["role"] == "tool"
    if not functions:
        return plain
    told = instructions(format, functions)
    if plain and plain[0]["role"] in ("system", "developer"):
        return [{**plain[0], "content": f"{_text(plain[0])}\n\n{told}".lstrip()}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]


def _with_calls(format: ToolFormat, message: Mapping[str, Any]) -> Message:
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(Call(call["function"]["name"], text or "{}"))
    parts = [part for part in (_text(message), render_calls(format, calls)) if part]
    return {"role": message["role"], "content": "\n".join(parts)}


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)
