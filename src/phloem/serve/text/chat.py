"""Chat templates: a list of messages becomes one prompt, rendered by the model's own Jinja template.

The environment is the one the field's templates are written for: sandboxed and immutable, blocks trimmed, loop
controls, `raise_exception`, `strftime_now`, and a `tojson` that leaves HTML characters alone. User strings are guarded
first, so that only the template writes control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, TypedDict, Unpack

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from phloem.core.errors import ConfigError, InvalidRequest
from phloem.serve.text.guard import ESCAPED_MARK, MARK, reveal
from phloem.serve.text.messages import Message, parse_messages
from phloem.serve.text.tokenizer import Tokenizer

CUT = "\ufdd0\ufdd1"  # noncharacters: where a continued message ends
TEMPLATE_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError,
)  # fmt: skip


class ChatOptions(TypedDict, total=False):
    """How to render. `add_generation_prompt` is on unless a message is continued; `continue_final_message` ends inside
    the last message, for the model to go on with; `arguments_as_text` leaves those of earlier tool calls as JSON text;
    `kwargs` are further variables of the template.
    """

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    add_generation_prompt: bool | None
    continue_final_message: bool
    arguments_as_text: bool
    kwargs: Mapping[str, Any] | None


class ChatTemplate:
    """The chat templates of one model, by name. `named_tokens` are the variables such as `bos_token` that they see."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: Mapping[str, str],
        *,
        named_tokens: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._tokenizer = tokenizer
        self._sources = dict(templates)
        self._named_tokens = dict(named_tokens or {})
        self._now = now
        self._compiled: dict[str, jinja2.Template] = {}

    @property
    def available(self) -> bool:
        """Whether the model has a template."""
        return "default" in self._sources

    def mentions(self, text: str) -> bool:
        """Whether a template of the model holds `text`."""
        return any(text in source for source in self._sources.values())

    def takes(self, variable: str) -> bool:
        """Whether a template of the model reads `variable`; one that is not valid Jinja reads nothing."""
        return any(self._reads(source, variable) for source in self._sources.values())

    def check(self) -> None:
        """ConfigError when the template is not valid Jinja."""
        try:
            self._template("default")
        except InvalidRequest as error:
            raise ConfigError(error.message, field="chat_template") from error

    def encode(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]) -> list[int]:
        """Ids of the rendered chat, as `render`. The template writes every control token, BOS included."""
        marked = self._render(messages, **options)
        return self._tokenizer.encode_guarded(marked, field="messages")

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatOptions]) -> str:
        """The rendered chat, for people. `messages` are JSON objects of the OpenAI API. InvalidRequest, naming the
        field, for what the template cannot take.
        """
        return reveal(self._render(messages, **options))

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        arguments_as_text: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest("cannot be set together with add_generation_prompt", field="continue_final_message")
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        template = self._template(name)
        chat = parse_messages(messages, template_source=self._sources[name], arguments_as_text=arguments_as_text)
        protect = self._tokenizer.guard.protect_all
        variables = self._named_tokens | protect(dict(kwargs or {}))
        variables |= {"messages": protect(chat), "tools": protect(tools), "documents": protect(documents)}
        variables["add_generation_prompt"] = (
            not continue_final_message if add_generation_prompt is None else add_generation_prompt
        )
        if continue_final_message:
            _mark_end(variables["messages"])
        try:
            rendered = template.render(variables)
        except TEMPLATE_FAILURES as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", field="messages"
            ) from error
        return _cut(rendered) if continue_final_message else rendered

    def _reads(self, source: str, variable: str) -> bool:
        try:
            return variable in jinja2.meta.find_undeclared_variables(self._environment.parse(source))
        except jinja2.TemplateError:
            return False

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._sources:
            raise InvalidRequest(
                "this model has no chat template: start the server with --chat-template FILE, or use /v1/completions",
                field="messages",
            )
        if name not in self._compiled:
            try:
                self._compiled[name] = self._environment.from_string(self._sources[name])
            except jinja2.TemplateError as error:
                raise InvalidRequest(
                    f"the chat template is not valid Jinja ({error}): start with a good --chat-template FILE",
                    field="messages",
                ) from error
        return self._compiled[name]

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda layout: self._now().strftime(layout)
        return environment


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for training; it renders as what is inside it."""

    tags = {"generation"}  # noqa: RUF012 as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The block's body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return text.replace(ESCAPED_MARK, MARK) if ensure_ascii else text


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _mark_end(messages: list[Message]) -> None:
    content = messages[-1].get("content")
    if not isinstance(content, str):
        raise InvalidRequest("the last message has no text to continue", field=f"messages[{len(messages) - 1}].content")
    messages[-1]["content"] = content + CUT + " "  # the space shows whether the template trims the message


def _cut(rendered: str) -> str:
    before, cut, after = rendered.rpartition(CUT)
    if not cut:
        raise InvalidRequest("the chat template drops the last message", field="continue_final_message")
    return before if after.startswith(" ") else before.rstrip()
