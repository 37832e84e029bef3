"""Which formats a model speaks, and how its own tokens are seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from phloem.core.config import ReasoningFormatName, ToolFormatName
from phloem.core.errors import ConfigError
from phloem.serve.text.chat import ChatTemplate
from phloem.serve.text.detokenizer import Detokenizer
from phloem.serve.text.formats.choose import REASONING_FORMATS, TOOL_FORMATS, choose_formats
from phloem.serve.text.formats.spec import ToolFormat
from phloem.serve.text.pieces import BYTE_ALPHABET
from phloem.serve.text.tokenizer import Tokenizer

TEMPLATES = {
    "qwen3-coder": "{{ tools }}<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
    "hermes": "{{ tools }}For each function call return it within <tool_call></tool_call> tags",
    "llama3": '<|start_header_id|>{{ tools }}Respond in the format {"name": function name, "parameters": dictionary}',
    "mistral": "{{ tools }}{{ '[TOOL_CALLS] [' }}",
    "mistral-v11": "{{ tools }}{{ '[TOOL_CALLS]' + name + '[ARGS]' }}",
    "deepseek": "{{ tools }}<｜tool▁calls▁begin｜>```json",
    "deepseek-v3.1": "{{ tools }}<｜tool▁calls▁begin｜><｜tool▁sep｜>",
}


def tokenizer_with(special: Sequence[str]) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(dict(BYTE_ALPHABET), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return Tokenizer(backend)


PLAIN = tokenizer_with(["<|im_end|>"])


def test_every_format_is_found_by_its_template() -> None:
    """Red when marks overlap, or a format was added without a template to know it by."""
    assert sorted(TEMPLATES) == sorted(format.name for format in TOOL_FORMATS)
    for name, source in TEMPLATES.items():
        formats = choose_formats(ChatTemplate(PLAIN, {"default": source}), PLAIN)
        assert formats.tools is not None
        assert (formats.tools.name, formats.template_takes_tools) == (name, True)


def test_the_options_name_the_formats() -> None:
    """Red when Config and the specs disagree."""
    assert set(get_args(ToolFormatName)) == {"auto", "none", *(format.name for format in TOOL_FORMATS)}
    assert set(get_args(ReasoningFormatName)) == {"auto", "none", *(format.name for format in REASONING_FORMATS)}


def test_a_template_without_tools_gets_the_commonest_format() -> None:
    """Red when a model without words for tools cannot call any."""
    formats = choose_formats(ChatTemplate(PLAIN, {"default": "{{ messages }} {# tools #}"}), PLAIN)
    assert formats.tools is not None
    assert (formats.tools.name, formats.template_takes_tools, formats.reasoning) == ("hermes", False, None)
    assert choose_formats(ChatTemplate(PLAIN, {"default": "{% if %}"}), PLAIN).template_takes_tools is False


def test_an_unknown_name_lists_the_known_ones() -> None:
    """Red when a typo falls back to something."""
    with pytest.raises(ConfigError, match=r"hermes, llama3") as caught:
        choose_formats(ChatTemplate(PLAIN, {}), PLAIN, tool_format="hermse")
    assert caught.value.field == "tool_format"


@pytest.mark.parametrize("format", TOOL_FORMATS, ids=lambda format: format.name)
def test_control_tokens_of_a_format_are_shown_to_its_parser(format: ToolFormat) -> None:
    """Red when text hides the token that a call begins with, or shows control tokens that are not the format's."""
    tokenizer = tokenizer_with(["<|im_end|>", format.trigger])
    chat = ChatTemplate(tokenizer, {"default": TEMPLATES[format.name]})
    formats = choose_formats(chat, tokenizer)
    assert formats.special_ids == {format.trigger: 257}
    ids = [ord("a"), 257, 256, ord("b")]
    assert Detokenizer(tokenizer).push(ids).text == "ab"
    shown = frozenset(formats.special_ids.values())
    assert Detokenizer(tokenizer, shown_ids=shown).push(ids).text == f"a{format.trigger}b"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<|im_end|>assistant\n", (True, False)),
        ("<|im_end|>assistant\n<think>\n", (True, True)),
        ("<|im_end|>assistant\n<think>\n\n</think>\n\n", (False, False)),
        ("<think>" + "long ago " * 20, (True, False)),
    ],
)
@pytest.mark.parametrize("special", [[], ["<think>", "</think>"]], ids=["plain", "control tokens"])
def test_the_end_of_the_prompt_says_whether_the_model_thinks(
    prompt: str, expected: tuple[bool, bool], special: list[str]
) -> None:
    """Red when the state of a reasoning model is guessed instead of read."""
    tokenizer = tokenizer_with(["<|im_end|>", *special])
    chat = ChatTemplate(tokenizer, {"default": "<think></think>"})
    formats = choose_formats(chat, tokenizer)
    format, has_begun = formats.reasoning_state(tokenizer, tokenizer.encode(prompt, allow_special=True))
    assert (format is not None, has_begun) == expected
