"""The tool fields of a chat request: judged once, every error names its place."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from phloem.core.errors import InvalidRequest
from phloem.serve.openai.errors import Unsupported
from phloem.serve.openai.requests import AllowedTools, ChatMessage, ChatRequest, Tool, ToolCall, ToolChoice
from phloem.serve.openai.schema import check_schema
from phloem.serve.text.formats.body import NAME_CHARACTERS
from phloem.serve.text.formats.spec import Function

MAX_TOOLS = 128
MAX_NAME_CHARS = 128
CHOICES = ("none", "auto", "required")


class ToolPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a request lets its answer do. `functions` are told to the model, `callable` are those it may call: all of
    them, those that are allowed, the one that has to be called, or none."""

    functions: tuple[Function, ...] = ()
    callable: tuple[Function, ...] = ()
    is_forced: bool = False
    max_calls: int | None = None

    @property
    def needs_constraint(self) -> bool:
        """Whether the answer has to keep to a grammar."""
        return bool(self.callable) and (
            self.is_forced
            or self.max_calls is not None
            or len(self.callable) < len(self.functions)
            or any(function.is_strict for function in self.callable)
        )


def plan_tools(request: ChatRequest) -> ToolPlan:
    """The plan of a request. InvalidRequest for tools and choices that make no sense. With tool_choice "none" the model
    is not told of its tools, so that it cannot call them."""
    functions = read_tools(request.tools or [])
    choice, allowed = request.tool_choice, functions
    if isinstance(choice, ToolChoice) and choice.type == "allowed_tools":
        choice, allowed = _allowed(choice.allowed_tools, functions)
    if isinstance(choice, ToolChoice):
        return ToolPlan(functions=functions, callable=(_named(choice, functions),), is_forced=True, max_calls=1)
    if choice is not None and choice not in CHOICES:
        message = f"tool_choice: {choice[:40]!r} is none of {', '.join(CHOICES)}, nor an object that names a function"
        raise InvalidRequest(message, field="tool_choice")
    if choice == "required" and not functions:
        raise InvalidRequest("tool_choice: a call is required, but there are no tools", field="tool_choice")
    if choice == "none" or not functions:
        return ToolPlan()
    max_calls = 1 if request.parallel_tool_calls is False else None
    return ToolPlan(functions=functions, callable=allowed, is_forced=choice == "required", max_calls=max_calls)


def read_tools(tools: Sequence[Tool]) -> tuple[Function, ...]:
    """The functions that are offered."""
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools: at most {MAX_TOOLS}, not {len(tools)}", field="tools")
    functions = tuple(_function(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    first: dict[str, int] = {}
    for index, function in enumerate(functions):
        if (other := first.setdefault(function.name, index)) != index:
            field = f"tools[{index}].function.name"
            raise InvalidRequest(f"{field}: {function.name!r} is the name of tools[{other}] already", field=field)
    return functions


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """InvalidRequest for a tool's result that says of which call, and for earlier calls without a name or with
    arguments that are no JSON object."""
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if message.role == "tool" and not message.tool_call_id:
            field += ".tool_call_id"
            raise InvalidRequest(f"{field}: missing; the id of the call that this is the result of", field=field)
        if message.tool_calls is not None and message.role != "assistant":
            raise InvalidRequest(f"{field}.tool_calls: only the assistant calls tools", field=f"{field}.tool_calls")
        for number, call in enumerate(message.tool_calls or []):
            _check_call(call, f"{field}.tool_calls[{number}]")


def _named(choice: ToolChoice, functions: Sequence[Function]) -> Function:
    if choice.type != "function" or choice.function is None:
        message = 'tool_choice: send {"type": "function", "function": {"name": ...}}, or none, auto or required'
        raise Unsupported(message, field="tool_choice")
    return _find(choice.function.name, functions, field="tool_choice.function.name")


def _allowed(allowed: AllowedTools | None, functions: Sequence[Function]) -> tuple[str, tuple[Function, ...]]:
    """The mode, and the functions that may be called, in the order of the request's tools."""
    field = "tool_choice.allowed_tools"
    if allowed is None:
        raise InvalidRequest(f"{field}: required, but missing", field=field)
    if allowed.mode not in ("auto", "required"):
        raise InvalidRequest(f"{field}.mode: auto or required, not {allowed.mode[:40]!r}", field=f"{field}.mode")
    if not allowed.tools:
        raise InvalidRequest(f"{field}.tools: empty; send tool_choice none instead", field=f"{field}.tools")
    names = set()
    for index, tool in enumerate(allowed.tools):
        place = f"{field}.tools[{index}]"
        if tool.type != "function" or tool.function is None:
            message = f'{place}: send {{"type": "function", "function": {{"name": ...}}}}'
            raise Unsupported(message, field=place)
        names.add(_find(tool.function.name, functions, field=f"{place}.function.name").name)
    return allowed.mode, tuple(function for function in functions if function.name in names)


def _find(name: str, functions: Sequence[Function], *, field: str) -> Function:
    for function in functions:
        if function.name == name:
            return function
    raise InvalidRequest(f"{field}: {name[:100]!r} is not among the tools", field=field)


def _function(tool: Tool, field: str) -> Function:
    if tool.type != "function":
        raise Unsupported(f"{field}.type: {tool.type[:40]!r} is not supported; use function", field=f"{field}.type")
    given, field = tool.function, f"{field}.function"
    if given is None:
        raise InvalidRequest(f"{field}: required, but missing", field=field)
    if not given.name:
        raise InvalidRequest(f"{field}.name: required, but missing", field=f"{field}.name")
    if len(given.name) > MAX_NAME_CHARS or not NAME_CHARACTERS.issuperset(given.name):
        message = f"{field}.name: at most {MAX_NAME_CHARS} letters, digits and _ - . : /, not {given.name[:100]!r}"
        raise InvalidRequest(message, field=f"{field}.name")
    parameters = given.parameters or {}
    check_schema(parameters, field=f"{field}.parameters")
    if parameters.get("type", "object") != "object":
        message = f'{field}.parameters.type: must be "object"; arguments have names'
        raise InvalidRequest(message, field=f"{field}.parameters.type")
    return Function(
        name=given.name, description=given.description, parameters=parameters, is_strict=given.strict is True
    )


def _check_call(call: ToolCall, field: str) -> None:
    field += ".function"
    if not call.function.name:
        raise InvalidRequest(f"{field}.name: empty", field=f"{field}.name")
    if isinstance(call.function.arguments, str) and call.function.arguments:
        try:
            msgspec.json.decode(call.function.arguments, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, RecursionError) as error:
            field += ".arguments"
            raise InvalidRequest(f"{field}: must be a JSON object ({error})", field=field) from error
