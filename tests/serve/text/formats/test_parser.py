"""OutputParser: every format, whole and in pieces, sound and broken."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from phloem.serve.text.formats.choose import REASONING_FORMATS, TOOL_FORMATS
from phloem.serve.text.formats.deepseek import DEEPSEEK, THINK
from phloem.serve.text.formats.hermes import HERMES
from phloem.serve.text.formats.llama3 import LLAMA3
from phloem.serve.text.formats.mistral import MISTRAL, MISTRAL_V11
from phloem.serve.text.formats.parser import (
    NO_TEXTS,
    Arguments,
    CallStart,
    Content,
    Event,
    OutputParser,
    Reasoning,
)
from phloem.serve.text.formats.qwen3_coder import QWEN3_CODER
from phloem.serve.text.formats.render import render_calls
from phloem.serve.text.formats.spec import Call, ReasoningFormat, ToolFormat

NAMES = frozenset({"get_weather", "wiki.search"})
PARIS = Call("get_weather", '{"city": "Paris"}')
OSLO = Call("wiki.search", '{"q": {"a": [1, -2.5e3, true, null, "\\u00e9\\"}{"]}}')


class Answer:
    """What a client has at the end, from the events."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.content = "".join(event.text for event in events if isinstance(event, Content))
        self.reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
        starts = [event for event in events if isinstance(event, CallStart)]
        assert [start.index for start in starts] == list(range(len(starts)))
        pieces = [event for event in events if isinstance(event, Arguments)]
        self.calls = [
            Call(start.name, "".join(piece.text for piece in pieces if piece.index == start.index)) for start in starts
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return repr(vars(self))


def read(
    pieces: Sequence[str],
    tools: ToolFormat | None = HERMES,
    reasoning: ReasoningFormat | None = None,
    *,
    has_begun: bool = False,
    texts: Mapping[str, frozenset[str]] = NO_TEXTS,
) -> Answer:
    parser = OutputParser(tools=tools, reasoning=reasoning, reasoning_has_begun=has_begun, names=NAMES, texts=texts)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return Answer([*events, *parser.finish()])


def values(calls: Sequence[Call]) -> list[tuple[str, object]]:
    """Calls whose arguments went through tags: JSON may be spelled in more than one way."""
    return [(call.name, json.loads(call.arguments)) for call in calls]


def arguments_of(answer: Answer) -> list[object]:
    return [json.loads(call.arguments) for call in answer.calls]


@pytest.mark.parametrize("format", TOOL_FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("calls", [[PARIS], [PARIS, OSLO, PARIS]], ids=len)
def test_what_is_rendered_is_read_back(format: ToolFormat, calls: list[Call]) -> None:
    """Red when the renderer and the parser of a format disagree."""
    answer = read([render_calls(format, calls)], format)
    assert (values(answer.calls), answer.content, answer.reasoning) == (values(calls), "", "")
    assert format.argument_tags is not None or answer.calls == calls


@pytest.mark.parametrize("format", TOOL_FORMATS, ids=lambda format: format.name)
def test_content_before_calls_is_kept_without_its_last_white_space(format: ToolFormat) -> None:
    """Red when text before a call is lost, or the line break in front of the tag is part of it."""
    text = ("I look < it up. \n", format.begin if format.is_bare else "", render_calls(format, [PARIS]), "\n")
    answer = read(["".join(text)], format)
    assert (answer.content, answer.calls) == ("I look < it up.", [PARIS])


@pytest.mark.parametrize("format", TOOL_FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize(
    "text", ["", " \n", "a <b> [c] {d} ", '{"name": "nobody", "arguments": {}}', "{", "<", "[TOOL"]
)
def test_text_without_calls_is_text(format: ToolFormat, text: str) -> None:
    """Red when ordinary text, JSON that names no function of the request among it, is changed or taken for a call."""
    answer = read([text], format)
    assert (answer.content, answer.calls) == (text, [])


@pytest.mark.parametrize("tool_format", TOOL_FORMATS, ids=lambda format: format.name)
def test_a_broken_call_is_text(tool_format: ToolFormat) -> None:
    """Red when text that begins like a call and is none disappears."""
    whole = render_calls(tool_format, [PARIS])
    for broken in (whole.replace("get_weather", ""), re.sub("{|<param", "(", whole, count=1)):
        answer = read([broken], tool_format)
        assert (answer.content, answer.calls) == (broken, [])


@pytest.mark.parametrize("cut", ['{"city": ', '{"city": "Par', "{"])
def test_a_call_cut_short_keeps_its_beginning(cut: str) -> None:
    """Red when max_tokens in the middle of the arguments loses the call."""
    answer = read(['<tool_call>\n{"name": "get_weather", "arguments": ' + cut])
    assert (answer.calls, answer.content) == ([Call("get_weather", cut)], "")


def test_arguments_that_stop_being_json_end_the_call_and_the_rest_is_text() -> None:
    """Red when a broken call swallows what follows it, or is taken back after it was sent."""
    answer = read(['<tool_call>{"name": "f", "arguments": {"a": 1 oops}}</tool_call> and more'])
    assert answer.calls == [Call("f", '{"a": 1 ')]
    assert answer.content == "oops}}</tool_call> and more"


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>{"arguments":{"a":1},"name":"f"}</tool_call>', [Call("f", '{"a":1}')]),
        ('<tool_call>\n\n{ "id": [{"name": "g"}], "name" : "f" }\n</tool_call>', [Call("f", "{}")]),
        ('<tool_call>{"name": "f", "parameters": {"a": "x\ny\t"}}', [Call("f", '{"a": "x\\ny\\t"}')]),
        ('<tool_call>{"name": "f", "arguments": {}}\n</tool_call>\n\n<tool_call>{"name": "g", "arguments": {}}',
         [Call("f", "{}"), Call("g", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {}}<tool_call>{"name": "g", "arguments": {}}</tool_call>',
         [Call("f", "{}"), Call("g", "{}")]),
        ('<tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>', [Call("f", "{}")]),
    ],
    ids=["order of keys", "further keys, no arguments", "raw line break", "blank line between", "end tag forgotten",
         "tag twice"],
)  # fmt: skip
def test_what_models_write_in_their_own_way_is_understood(text: str, calls: list[Call]) -> None:
    """Red when the parser insists on the spelling that the template uses."""
    assert read([text]).calls == calls


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "' + "f" * 300 + '", "arguments": {}}</tool_call>',
        '<tool_call>["f"]</tool_call>',
        '<tool_call>{"name": "f", "arguments": ',
    ],
)
def test_what_is_no_call_is_content_unchanged(text: str) -> None:
    """Red when a name that is no text, or arguments that are no object, become a call or an exception."""
    assert read([text]).content == text


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (LLAMA3, '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}'),
        (LLAMA3, '{"name": "get_weather", "parameters": {"city": "Paris"}}'),
        (MISTRAL, '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]'),
        (MISTRAL_V11, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'),
        (DEEPSEEK, '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n'
         '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'),
    ],
)  # fmt: skip
def test_the_spelling_of_the_models_documentation(format: ToolFormat, text: str) -> None:
    """Red when a spec drifts from what its models write."""
    assert read([text], format).calls == [PARIS]


@pytest.mark.parametrize("format", REASONING_FORMATS, ids=lambda format: format.name)
def test_reasoning_comes_first_and_only_there(format: ReasoningFormat) -> None:
    """Red when reasoning is not split off, keeps white space at its edges, or is looked for later in the answer."""
    begin, end = format.begin, format.end
    answer = read([f"\n{begin}\n I < think \n{end}\n\nSo: {begin}x{end} \n"], None, format)
    assert (answer.reasoning, answer.content) == ("I < think", f"So: {begin}x{end} \n")
    assert read([f"I think {end} So"], None, format, has_begun=True) == Answer([Reasoning("I think"), Content("So")])
    assert read([f"I think {end[:3]}"], None, format, has_begun=True).reasoning == f"I think {end[:3]}"
    assert read([f" no {begin}x{end}"], None, format).content == f" no {begin}x{end}"


def test_calls_follow_reasoning_and_are_not_looked_for_inside() -> None:
    """Red when a call that the model only thinks about is made, or a call after thinking is not."""
    text = render_calls(HERMES, [PARIS])
    answer = read([f"<think>{text}</think>\n\n{text}"], HERMES, THINK)
    assert (answer.reasoning, answer.content, answer.calls) == (text, "", [PARIS])


def test_arguments_stream_while_they_are_written() -> None:
    """Red when a call is held back until it is complete."""
    parser = OutputParser(tools=HERMES, reasoning=None)
    assert parser.feed('<tool_call>{"name": "f", "arguments": ') == []
    assert parser.feed('{"a": "b') == [CallStart(0, "f"), *(Arguments(0, c) for c in '{"a": "b')]


CODE = "<tool_call>\n<function=get_weather>\n<parameter=city>\n{value}\n</parameter>\n</function>\n</tool_call>"
TEXTS = {"get_weather": frozenset({"city"})}


@pytest.mark.parametrize(
    ("value", "untyped", "typed"),
    [
        ("Paris", "Paris", "Paris"),
        ("3", 3, "3"),
        ('{"a": [1]}', {"a": [1]}, '{"a": [1]}'),
        ('"quoted"', '"quoted"', '"quoted"'),
        ("\n  two\nlines\n", "\n  two\nlines\n", "\n  two\nlines\n"),
        ("NaN", "NaN", "NaN"),
        ("<b>&amp;</b> </function>", "<b>&amp;</b> </function>", "<b>&amp;</b> </function>"),
        ("", "", ""),
    ],
)
def test_a_value_between_tags_is_what_its_schema_says(value: str, untyped: object, typed: object) -> None:
    """Red when a text that looks like a number becomes one, a number stays text, or a text is changed."""
    text = CODE.replace("{value}", value)
    assert arguments_of(read([text], QWEN3_CODER)) == [{"city": untyped}]
    assert arguments_of(read([text], QWEN3_CODER, texts=TEXTS)) == [{"city": typed}]
    assert arguments_of(read([text.replace("\n", "")], QWEN3_CODER, texts=TEXTS)) == [{"city": value.replace("\n", "")}]


def test_a_tagged_call_cut_short_or_broken_keeps_its_beginning() -> None:
    """Red when max_tokens in the middle of a value, or a tag that is none, loses what was read."""
    whole = CODE.replace("{value}", "Paris")
    [call] = read([whole[: whole.index("ris")]], QWEN3_CODER, texts=TEXTS).calls
    assert call.arguments == '{"city": "Pa'
    broken = read([whole.replace("</function>", "</func> and more")], QWEN3_CODER, texts=TEXTS)
    assert [call.arguments for call in broken.calls] == ['{"city": "Paris"']
    assert broken.content == "\n</func> and more\n</tool_call>"
    none = read(["<tool_call><function=get_weather></function></tool_call>"], QWEN3_CODER)
    assert none.calls == [Call("get_weather", "{}")]


# -- properties


def fragments(tools: ToolFormat, reasoning: ReasoningFormat) -> list[str]:
    """Text of which both sound and broken answers are made."""
    parts = [text for text in (*tools.texts, tools.trigger, reasoning.begin, reasoning.end) if text]
    parts += [render_calls(tools, [PARIS]), render_calls(tools, [PARIS, OSLO]), '{"name": "get_weather"', "get_weather"]
    parts += [
        f', "{tools.arguments_key}": ',
        '{"city": "Paris"}',
        "}",
        "{",
        '"',
        "\\",
        ",",
        "]",
        "12",
        "tru",
        " ",
        "\n",
    ]
    return [*parts, "text", "é", "\x00", "\ufffd"]


@st.composite
def answers(draw: st.DrawFn) -> tuple[ToolFormat, ReasoningFormat, bool, str]:
    tools, reasoning = draw(st.sampled_from(TOOL_FORMATS)), draw(st.sampled_from(REASONING_FORMATS))
    part = st.sampled_from(fragments(tools, reasoning))
    damaged = part.flatmap(lambda text: st.integers(0, len(text)).map(lambda cut: text[:cut]))
    text = "".join(draw(st.lists(part | damaged | st.text(max_size=3), max_size=14)))
    return tools, reasoning, draw(st.booleans()), text


@settings(max_examples=1500, deadline=None)
@given(answers(), st.randoms(use_true_random=False))
def test_every_way_of_cutting_the_stream_gives_the_same_answer(
    case: tuple[ToolFormat, ReasoningFormat, bool, str], random: random.Random
) -> None:
    """Red when an event depends on where the text was cut, or any text raises."""
    tools, reasoning, has_begun, text = case
    whole = read([text], tools, reasoning, has_begun=has_begun)
    cuts = sorted(random.sample(range(len(text) + 1), min(len(text), random.randrange(8))))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)])]
    assert read(pieces, tools, reasoning, has_begun=has_begun) == whole
    assert read(list(text), tools, reasoning, has_begun=has_begun) == whole


@settings(max_examples=500, deadline=None)
@given(answers())
def test_nothing_but_white_space_and_tags_is_lost(case: tuple[ToolFormat, ReasoningFormat, bool, str]) -> None:
    """Red when a character of the model's text is neither in the content, nor in a call, nor part of the format."""
    tools, _, _, text = case
    answer = read([text], tools)
    if not answer.calls:
        assert answer.content == text
    left = len("".join(text.split()))
    accounted = len("".join(answer.content.split())) + sum(len("".join(c.arguments.split())) for c in answer.calls)
    syntax = len("".join("".join(tools.texts).split())) + 32
    assert left - accounted <= (len(answer.calls) * (syntax + 12)) + text.count('"')


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(TOOL_FORMATS),
    st.dictionaries(st.text(max_size=4), st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=6) |
                    st.floats(allow_nan=False, allow_infinity=False), lambda inner: st.lists(inner, max_size=3) |
                    st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6), max_size=4),
    st.booleans(),
)  # fmt: skip
def test_any_arguments_survive(format: ToolFormat, arguments: dict[str, object], ascii: bool) -> None:
    """Red when some JSON value is not valid to the scanner, or is changed on the way."""
    calls = [Call("get_weather", json.dumps(arguments, ensure_ascii=ascii))] * 2
    if format.argument_tags is None:
        assert read([render_calls(format, calls)], format).calls == calls
        return
    assume(not any({">"} & set(key) for key in arguments))  # cannot be written between these tags
    texts = {"get_weather": frozenset(key for key, value in arguments.items() if isinstance(value, str))}
    assert values(read([render_calls(format, calls)], format, texts=texts).calls) == values(calls)
