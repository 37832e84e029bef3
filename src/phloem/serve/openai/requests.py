"""Request bodies of the OpenAI API, with the field's extensions. Types only: params.py judges the values.

Fields that are not named here are ignored, as the field's servers do; what would change the answer if it were ignored
is named in UNSUPPORTED and refused.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class StreamOptions(msgspec.Struct, frozen=True):
    """`include_usage`: one more chunk at the end with the token counts."""

    include_usage: bool | None = None


class ConstraintFields(msgspec.Struct, frozen=True, kw_only=True):
    """What constrains the answer: at most one of them (constraints.py reads them)."""

    response_format: dict[str, Any] | None = None
    # -- as vLLM spells them
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # -- as SGLang spells them
    json_schema: dict[str, Any] | str | bool | None = None
    regex: str | None = None
    ebnf: str | None = None


class SamplingFields(ConstraintFields, frozen=True, kw_only=True):
    """What completions and chat completions have in common. None means the default."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    # -- extensions, named as the field names them
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    allow_special_tokens: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    # -- known, and refused when set (UNSUPPORTED)
    logits_processors: Any = None
    use_beam_search: bool | None = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/completions. `prompt` is text, a list of texts, token ids, or a list of lists of token ids.

    `max_tokens` 0 with `echo` scores the prompt and generates nothing. A prompt is text: control tokens
    it spells stay text, unless `allow_special_tokens` says that it is a chat template rendered by the caller.
    """

    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only `type` "text" is understood."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """`arguments` are a JSON object, usually as text."""

    name: str
    arguments: str | dict[str, Any]


class ToolCall(msgspec.Struct, frozen=True):
    """A call that an earlier answer made."""

    function: FunctionCall
    id: str | None = None
    type: str = "function"


class FunctionDefinition(msgspec.Struct, frozen=True):
    """`parameters` is a JSON schema of an object. `strict`: calls follow it, whatever the model would write."""

    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """Only `type` "function" is understood."""

    type: str = "function"
    function: FunctionDefinition | None = None


class NamedFunction(msgspec.Struct, frozen=True):
    """The function that has to be called."""

    name: str


class AllowedTool(msgspec.Struct, frozen=True):
    """One of the request's tools, by name."""

    type: str
    function: NamedFunction | None = None


class AllowedTools(msgspec.Struct, frozen=True):
    """`mode`: auto or required."""

    mode: str
    tools: list[AllowedTool]


class ToolChoice(msgspec.Struct, frozen=True):
    """{"type": "function", "function": {"name": ...}}, or {"type": "allowed_tools", "allowed_tools": {...}}."""

    type: str
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn. "developer" is read as "system"."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def texts(self) -> list[str]:
        """Every text of the content."""
        if isinstance(self.content, list):
            return [part.text or "" for part in self.content]
        return [self.content or ""]


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/chat/completions. `max_completion_tokens` wins over its older name `max_tokens`."""

    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    # -- known, and refused when set (UNSUPPORTED)
    functions: list[Any] | None = None
    audio: Any = None
    chat_template: str | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    allow_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


UNSUPPORTED = {
    "suffix": "text cannot be inserted before a suffix; put it into the prompt",
    "functions": "the API's older form of tools; send tools and tool_choice",
    "audio": "this model writes text only",
    "chat_template": "the template is chosen when the server starts (--chat-template)",
    "logits_processors": "client code does not run on the server; use logit_bias",
    "use_beam_search": "beam search is not supported; use n",
}
"""Fields that would change the answer if they were ignored, and what to do instead."""
