"""Which formats a model speaks, from its chat template or from the options, and what its vocabulary makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from phloem.core.errors import ConfigError
from phloem.serve.text.chat import ChatTemplate
from phloem.serve.text.formats.deepseek import DEEPSEEK, DEEPSEEK_V31, THINK
from phloem.serve.text.formats.hermes import HERMES
from phloem.serve.text.formats.llama3 import LLAMA3
from phloem.serve.text.formats.mistral import MISTRAL, MISTRAL_THINK, MISTRAL_V11
from phloem.serve.text.formats.qwen3_coder import QWEN3_CODER
from phloem.serve.text.formats.spec import ReasoningFormat, ToolFormat
from phloem.serve.text.tokenizer import Tokenizer

F = TypeVar("F", ToolFormat, ReasoningFormat)

TOOL_FORMATS = (DEEPSEEK, DEEPSEEK_V31, MISTRAL_V11, MISTRAL, QWEN3_CODER, HERMES, LLAMA3)
"""In the order in which a template is compared with them."""
REASONING_FORMATS = (MISTRAL_THINK, THINK)
NUM_TAIL_TOKENS = 16
"""Enough of a prompt's end to hold the tags of a reasoning that the template opened, or closed at once."""


class Formats(msgspec.Struct, frozen=True, kw_only=True):
    """The formats of the served model. `special_ids` are the control tokens among their tags: text hides control
    tokens, so the parser has to be shown these. `template_takes_tools`: otherwise render.py writes them."""

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    special_ids: dict[str, int]
    template_takes_tools: bool

    @property
    def shown_ids(self) -> frozenset[int]:
        """Control tokens that are part of a format."""
        return frozenset(self.special_ids.values())

    def reasoning_state(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> tuple[ReasoningFormat | None, bool]:
        """(the format if the answer may hold reasoning, whether the prompt opened it)."""
        if self.reasoning is None:
            return None, False
        tail = tokenizer.decode(prompt[-NUM_TAIL_TOKENS:], skip_special=False).rstrip()
        if tail.endswith(self.reasoning.end):
            return None, False  # the template closed it: the model is not to think
        return self.reasoning, tail.endswith(self.reasoning.begin)


def choose_formats(
    chat: ChatTemplate, tokenizer: Tokenizer, *, tool_format: str = "auto", reasoning_format: str = "auto"
) -> Formats:
    """The formats of those names; "auto": what the template spells ("hermes" where it spells no tools at all), "none":
    none. ConfigError for another name."""
    tools = _chosen(TOOL_FORMATS, tool_format, chat, field="tool_format")
    if tool_format == "auto" and tools is None:
        tools = HERMES
    reasoning = _chosen(REASONING_FORMATS, reasoning_format, chat, field="reasoning_format")
    written = "".join(tools.texts) if tools is not None else ""
    written += reasoning.begin + reasoning.end if reasoning is not None else ""
    control = {tokenizer.token_text(id): id for id in sorted(tokenizer.control_ids)}
    return Formats(
        tools=tools,
        reasoning=reasoning,
        special_ids={text: id for text, id in control.items() if text and text in written},
        template_takes_tools=chat.takes("tools"),
    )


def _chosen(formats: Sequence[F], name: str, chat: ChatTemplate, *, field: str) -> F | None:
    if name == "none":
        return None
    if name == "auto":
        return next((format for format in formats if all(map(chat.mentions, format.marks))), None)
    for format in formats:
        if format.name == name:
            return format
    known = ", ".join(sorted(format.name for format in formats))
    raise ConfigError(f"no format is called {name!r}; choose auto, none, {known}", field=field)
