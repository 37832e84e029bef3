"""Grammars from specs, on a vocabulary of bytes and the formats' own tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from phloem.core.request import Constraint
from phloem.runtime.grammar.compile import spelled
from phloem.serve.text.formats.choose import TOOL_FORMATS
from phloem.serve.text.formats.constraint import after_reasoning, arguments_schema, tool_constraint
from phloem.serve.text.formats.deepseek import DEEPSEEK, THINK
from phloem.serve.text.formats.hermes import HERMES
from phloem.serve.text.formats.llama3 import LLAMA3
from phloem.serve.text.formats.qwen3_coder import QWEN3_CODER
from phloem.serve.text.formats.render import render_calls
from phloem.serve.text.formats.spec import Call, Function, ToolFormat

END = 256
TAGS = {
    tag: 257 + number
    for number, tag in enumerate(
        ["<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
         "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "</think>", "<think>"]
    )
}  # fmt: skip
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
LOOSE, STRICT = Function(name="wiki", parameters=CITY), Function(name="wi", parameters=CITY, is_strict=True)
GOOD, BAD = '{"city": "Paris"}', '{"town": 1}'
BY_NAME = pytest.mark.parametrize("format", TOOL_FORMATS, ids=lambda format: format.name)
SPECIALS = pytest.mark.parametrize("special_ids", [{}, TAGS], ids=["plain tags", "control tokens"])


class Bytes:
    """256 bytes, an end token, and the tags as control tokens."""

    eos_token_id, bos_token_id = END, None
    tokens = [bytes([byte]) for byte in range(256)] + [b"\xff<end>"] + [b"\xff" + tag.encode() for tag in TAGS]
    special_token_ids = range(END, END + 1 + len(TAGS))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()))


def ids_of(text: str, special_ids: dict[str, int]) -> list[int]:
    """Bytes, with the tags in `special_ids` as tokens."""
    tags = [tag for tag in special_ids if tag in text]
    if not tags:
        return list(text.encode())
    first = min(tags, key=text.index)
    before, _, after = text.partition(first)
    return [*before.encode(), special_ids[first], *ids_of(after, special_ids)]


def accepts(constraint: Constraint, text: str, special_ids: dict[str, int], *, whole: bool = True) -> bool:
    """Whether `text` may be generated; `whole`: and the answer end there."""
    matcher = LLMatcher(TOKENIZER, spelled(constraint))
    assert not matcher.is_error(), matcher.get_error()
    ids = ids_of(text, special_ids)
    return matcher.try_consume_tokens(ids) == len(ids) and (not whole or matcher.is_accepting())


def constrained(format: ToolFormat, functions: Sequence[Function], **options: Any) -> Constraint:
    defaults = {"is_forced": True, "max_calls": None, "with_schemas": True, "special_ids": {}}
    return tool_constraint(format, functions, **{**defaults, **options})


@BY_NAME
@SPECIALS
def test_forced_calls_are_what_the_renderer_writes(format: ToolFormat, special_ids: dict[str, int]) -> None:
    """Red when constraint and renderer disagree, an unknown name or wrong arguments get through, or text does."""
    constraint = constrained(format, [LOOSE, STRICT], special_ids=special_ids)
    for calls in ([Call("wiki", GOOD)], [Call("wi", GOOD), Call("wiki", GOOD), Call("wi", GOOD)]):
        assert accepts(constraint, render_calls(format, calls), special_ids)
    for calls in ([Call("wik", GOOD)], [Call("wiki", BAD)], [Call("wi", GOOD), Call("wi", BAD)]):
        assert not accepts(constraint, render_calls(format, calls), special_ids)
    assert not accepts(constraint, "Paris", special_ids)
    assert not accepts(constraint, "", special_ids)


@BY_NAME
def test_a_number_of_calls_is_kept(format: ToolFormat) -> None:
    """Red when parallel_tool_calls: false lets a second call through."""
    once = constrained(format, [LOOSE], max_calls=1)
    twice = constrained(format, [LOOSE], max_calls=2)
    one, two, three = (render_calls(format, [Call("wiki", GOOD)] * count) for count in (1, 2, 3))
    assert [accepts(once, text, {}) for text in (one, two)] == [True, False]
    assert [accepts(twice, text, {}) for text in (one, two, three)] == [True, True, False]


@BY_NAME
@SPECIALS
def test_free_text_may_end_in_calls_of_strict_functions(format: ToolFormat, special_ids: dict[str, int]) -> None:
    """Red when auto forces a call, forbids text, or does not constrain from the trigger on."""
    constraint = constrained(format, [LOOSE, STRICT], is_forced=False, with_schemas=False, special_ids=special_ids)
    for text in ("", "Paris.", "a <b> [c]\n\n"):
        assert accepts(constraint, text, special_ids)
    begin = format.begin if format.is_bare else ""
    for before in ("", "I look it up.\n" + begin):
        assert accepts(constraint, before + render_calls(format, [Call("wi", GOOD)]), special_ids)
        assert accepts(constraint, before + render_calls(format, [Call("wiki", BAD)]), special_ids)
        assert not accepts(constraint, before + render_calls(format, [Call("wi", BAD)]), special_ids)
        assert not accepts(constraint, before + render_calls(format, [Call("other", GOOD)]), special_ids)
    assert not accepts(constraint, format.trigger + "I mean", special_ids, whole=False)
    if format.is_bare:
        assert not accepts(constraint, '{"city"', special_ids, whole=False)


@SPECIALS
def test_reasoning_may_come_first_and_has_to_where_the_prompt_opened_it(special_ids: dict[str, int]) -> None:
    """Red when a model that thinks is cut off, or calls without having ended its reasoning."""
    calls = render_calls(HERMES, [Call("wi", GOOD)])
    closed = constrained(HERMES, [STRICT], reasoning=THINK, special_ids=special_ids)
    assert accepts(closed, calls, special_ids)
    assert accepts(closed, f"<think>\nWell <tool_call>.\n</think>\n\n{calls}", special_ids)
    opened = constrained(HERMES, [STRICT], reasoning=THINK, reasoning_has_begun=True, special_ids=special_ids)
    assert accepts(opened, f"Well <tool_call>.\n</think>\n\n{calls}", special_ids)
    assert not accepts(opened, calls, special_ids)
    free = constrained(
        HERMES, [STRICT], is_forced=False, reasoning=THINK, reasoning_has_begun=True, special_ids=special_ids
    )
    assert accepts(free, "Well <tool_call>.\n</think>\n\nParis.", special_ids)
    assert not accepts(free, "Well</think><tool_call>x", special_ids, whole=False)


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint("json_schema", json.dumps(CITY)), GOOD, BAD),
        (Constraint("json_object"), "{}", "[]"),
        (Constraint("regex", r"a/b\/[0-9]+"), "a/b/12", "a/b/"),
        (Constraint("choice", '["yes", "n\\"o"]'), 'n"o', "no"),
        (Constraint("grammar", 'start: "{" /[a-z"]+/ other\nother: "}" // }\n'), '{a"b}', "{A}"),
        (Constraint("grammar", 'root ::= "yes" | "no" [0-9]+ # "\n'), "no12", "no"),
    ],
    ids=lambda value: value.kind if isinstance(value, Constraint) else None,
)
def test_a_constraint_starts_after_the_reasoning(constraint: Constraint, good: str, bad: str) -> None:
    """Red when response_format and its kin reach into the reasoning of a model."""
    after = after_reasoning(constraint, THINK, {})
    assert accepts(after, f"Let me see: {bad}</think>\n{good}", {})
    assert not accepts(after, f"Let me see</think>\n{bad}", {})


def test_undeclared_arguments_are_not_generated() -> None:
    """Red when a weak model can go on with properties of its own, or a schema that speaks of further ones is closed."""
    assert arguments_schema(Function(name="f")) == {"type": "object", "properties": {}, "additionalProperties": False}
    assert arguments_schema(LOOSE)["additionalProperties"] is False
    for schema in ({"type": "object", "additionalProperties": {"type": "string"}}, {"type": "object", "anyOf": [CITY]}):
        assert arguments_schema(Function(name="f", parameters=schema)) == schema


def test_white_space_is_what_the_templates_write() -> None:
    """Red when a model can pad its arguments with line breaks forever."""
    constraint = constrained(HERMES, [STRICT])
    padded = render_calls(HERMES, [Call("wi", '{"city":   "Paris"}')])
    assert not accepts(constraint, padded, {})


STRICT_TYPES = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "code": {"type": "string", "pattern": "^[A-Z]{2}/[0-9]$"},
        "kind": {"enum": ["a", "b"]},
        "count": {"type": "integer"},
        "tree": {"$ref": "#/$defs/tree"},
    },
    "required": ["name"],
    "$defs": {
        "tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
    },
}


@pytest.mark.parametrize(
    ("arguments", "is_good"),
    [
        ({"name": "Ada"}, True),
        ({"name": "é\n<b"}, True),
        ({"name": "Ada", "code": "AB/1", "kind": "b", "count": 3, "tree": {"next": {}}}, True),
        ({"name": "Ada", "count": "three"}, False),
        ({"name": "Ada Lovelace"}, False),
        ({"name": "Ada", "code": "AB1"}, False),
        ({"name": "Ada", "kind": "c"}, False),
        ({"name": "Ada", "tree": {"other": 1}}, False),
        ({"count": 3}, False),
        ({"name": "Ada", "undeclared": "x"}, False),
    ],
    ids=str,
)
def test_arguments_between_tags_follow_their_schema(arguments: dict[str, Any], is_good: bool) -> None:
    """Red when a format without JSON lets through what the others do not."""
    function = Function(name="f", parameters=STRICT_TYPES, is_strict=True)
    constraint = constrained(QWEN3_CODER, [function])
    assert accepts(constraint, render_calls(QWEN3_CODER, [Call("f", json.dumps(arguments))]), {}) == is_good
    free = constrained(QWEN3_CODER, [Function(name="f")], with_schemas=False)
    assert accepts(free, render_calls(QWEN3_CODER, [Call("f", json.dumps(arguments))]), {})


def test_specs_that_the_tests_name_have_their_tags_among_the_control_tokens() -> None:
    """Red when a tag is renamed and the tests above no longer use it as a token."""
    assert DEEPSEEK.trigger in TAGS
    assert LLAMA3.trigger in TAGS
