"""Tools and reasoning in /v1/chat/completions, as a client sees them; the engine says what the test scripts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from phloem.core import wire
from phloem.serve.text.formats.deepseek import DEEPSEEK
from phloem.serve.text.formats.hermes import HERMES
from phloem.serve.text.formats.render import render_calls
from phloem.serve.text.formats.spec import Call

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
LONG = {"model": "tiny", "max_model_len": 4096, "max_prompt_len": 4095, "vocab_size": 258}
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}{% endfor %}{{ '\n' }}{% endfor %}"
)
THINKING = TOOL_TEMPLATE + "</think>{% if enable_thinking is undefined or enable_thinking %}<think>\n{% endif %}"
PARIS = Call("get_weather", '{"city": "Paris"}')
TWO = "I look.\n" + render_calls(HERMES, [PARIS, Call("now", "{}")])


def tool(name: str = "get_weather", **function: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **function}}


TOOLS = [tool(), tool("now", parameters=None)]


@pytest.fixture
def talk(serve):
    """A server whose context holds tool definitions."""

    def make(*says: str, **options: Any):
        return serve(says=says or ["x"], ready=wire.Ready(**LONG), **options)

    return make


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


async def message_of(server, **body: Any) -> tuple[dict[str, Any], str]:
    answer = await server.chat(**body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"], choice["finish_reason"]


async def test_calls_in_one_piece(talk):
    """Red when calls stay text, lose an id, or the answer does not say that it waits for them."""
    message, finish = await message_of(talk(TWO), tools=TOOLS)
    assert (message["content"], finish) == ("I look.", "tool_calls")
    calls = message["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert {call["type"] for call in calls} == {"function"}
    assert len({call["id"] for call in calls}) == 2


async def test_a_message_of_calls_only_has_no_content(talk):
    """Red when content is an empty text instead of null."""
    message, _ = await message_of(talk(render_calls(HERMES, [PARIS])), tools=TOOLS)
    assert message["content"] is None


async def test_stream_gives_the_name_once_and_the_arguments_in_pieces(talk):
    """Red when id, type or name come twice, late or not at all, or the pieces do not add up."""
    chunks = [chunk["choices"][0] for chunk in await talk(TWO).events(PATH, messages=HI, tools=TOOLS)]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "I look."
    pieces = [piece for chunk in chunks for piece in chunk["delta"].get("tool_calls", [])]
    for index, call in enumerate([PARIS, Call("now", "{}")]):
        mine = [piece for piece in pieces if piece["index"] == index]
        assert [piece["function"]["name"] for piece in mine if "name" in piece["function"]] == [call.name]
        assert [(piece["id"][:5], piece["type"]) for piece in mine if "id" in piece] == [("call_", "function")]
        assert "id" in mine[0]
        assert "".join(piece["function"]["arguments"] for piece in mine) == call.arguments
    assert len(pieces) > 6  # one letter a token: they were not collected first
    assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == ["tool_calls"]


async def test_every_choice_has_its_own_calls(talk):
    """Red when choices share a parser."""
    server = talk(TWO, "none")
    choices = (await server.chat(tools=TOOLS, n=2)).json()["choices"]
    assert [len(choice["message"].get("tool_calls", [])) for choice in choices] == [2, 0]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls", "stop"]


async def test_a_call_cut_by_max_tokens_ends_with_length(talk):
    """Red when a client is told to run half a call."""
    message, finish = await message_of(talk(render_calls(HERMES, [PARIS])), tools=TOOLS, max_tokens=60)
    assert finish == "length"
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "P'


async def test_without_tools_the_text_of_a_call_is_text(talk):
    """Red when a parser runs that nobody asked for."""
    for body in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        message, finish = await message_of(talk(TWO), **body)
        assert (message, finish) == ({"role": "assistant", "content": TWO}, "stop")


async def test_usage_and_logprobs_count_the_tokens_of_calls(talk):
    """Red when tokens inside a call are lost from the counts or the log-probabilities."""
    text = render_calls(HERMES, [PARIS])
    body = (await talk(text).chat(tools=TOOLS, logprobs=True)).json()
    assert body["usage"]["completion_tokens"] == len(text) + 1 == len(body["choices"][0]["logprobs"]["content"])
    chunks = await talk(text).events(PATH, messages=HI, tools=TOOLS, logprobs=True)
    streamed = [
        entry for c in chunks if c["choices"][0]["logprobs"] for entry in c["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == body["choices"][0]["logprobs"]["content"]


# -- what the model is told


def prompt(server) -> str:
    return bytes(token for token in server.submits[-1].prompt if token < 256).decode()


async def test_a_template_that_takes_tools_gets_them(talk):
    """Red when the definitions do not reach the template as it expects them, or strict shows in the prompt."""
    server = talk(template=TOOL_TEMPLATE)
    await server.chat(tools=[tool(strict=True, description="d")])
    shown = json.loads(prompt(server).splitlines()[0])
    assert list(shown["function"]) == ["name", "description", "parameters"]
    assert prompt(server).splitlines()[1] == "user:hi"
    await server.chat(tools=[tool()], tool_choice="none")
    assert prompt(server).splitlines() == ["user:hi"]


HISTORY = [
    *HI,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}},
        {"id": "2", "type": "function", "function": {"name": "now", "arguments": ""}},
    ]},
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "noon"}]},
]  # fmt: skip


async def test_earlier_calls_and_results_go_to_the_template(talk):
    """Red when arguments are not objects, or results are lost."""
    server = talk(template=TOOL_TEMPLATE)
    assert (await server.post(PATH, messages=HISTORY, tools=TOOLS)).status_code == 200
    assert prompt(server).splitlines()[2:] == [
        "user:hi",
        'assistant:<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}'
        '<tool_call>{"name": "now", "arguments": {}}',
        "tool:rain",
        "tool:noon",
    ]


async def test_a_template_without_tools_has_them_written_into_the_messages(talk):
    """Red when a model whose template knows no tools is not told of them, of its calls or of their results."""
    server = talk()
    assert (await server.post(PATH, messages=HISTORY, tools=TOOLS)).status_code == 200
    text = prompt(server)
    assert text.startswith("system\nYou can call these functions:")
    assert '"name": "get_weather"' in text
    assert text.count('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>') == 1
    assert "user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response>" in text
    await server.post(PATH, messages=[{"role": "system", "content": "Be brief."}, *HI], tools=TOOLS)
    assert prompt(server).startswith("system\nBe brief.\n\nYou can call")


async def test_a_template_that_adds_arguments_to_strings_gets_text(talk):
    """Red when DeepSeek's templates fail on arguments that are objects."""
    source = "{{ tools and '' }}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    source += "{{ '```json' + '\\n' + c.function.arguments }}{% endfor %}{% endfor %}" + DEEPSEEK.begin
    server = talk(template=source)
    assert (await server.post(PATH, messages=HISTORY, tools=TOOLS)).status_code == 200
    assert '```json\n{"city": "Paris"}' in prompt(server)


async def test_tokenize_counts_tools(talk):
    """Red when /tokenize and the chat disagree about the prompt."""
    server = talk()
    counted = (await server.post("/tokenize", messages=HI, tools=TOOLS)).json()
    await server.chat(tools=TOOLS)
    assert tuple(counted["tokens"]) == server.submits[-1].prompt


# -- constraints


def constraint(server):
    return server.submits[-1].sampling.constraint


@pytest.mark.parametrize(
    ("body", "is_constrained"),
    [
        ({}, False),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": named("now")}, True),
        ({"parallel_tool_calls": False}, True),
        ({"tool_choice": allowed("auto", "now", "get_weather")}, False),
        ({"tool_choice": allowed("auto", "now")}, True),
        ({"tool_choice": allowed("required", "now", "get_weather")}, True),
        ({"tools": [tool(strict=True)]}, True),
        ({"tools": [tool(strict=True)], "tool_choice": "none"}, False),
        ({"tools": [tool(strict=False)]}, False),
        ({"tools": []}, False),
        ({"response_format": {"type": "json_object"}, "tools": []}, True),
    ],
    ids=str,
)
async def test_when_the_answer_is_constrained(talk, body, is_constrained):
    """Red when a promise of the request is left to the model, or a free answer is constrained."""
    server = talk()
    await message_of(server, **{"tools": TOOLS, **body})
    assert (constraint(server) is not None) == is_constrained


async def test_a_named_function_is_the_only_one_that_can_be_called(talk):
    """Red when the model may choose, or is not told of the other tools."""
    server = talk()
    await message_of(server, tools=TOOLS, tool_choice=named("now"))
    assert "now" in constraint(server).text
    assert "get_weather" not in constraint(server).text
    assert "get_weather" in prompt(server)


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_only_allowed_tools_can_be_called(talk, mode):
    """Red when a tool that is told to the model, so that its prompt stays cached, can be called though it is not
    allowed; or text is forbidden in mode auto."""
    server = talk()
    await message_of(server, tools=TOOLS, tool_choice=allowed(mode, "now"))
    assert "now" in constraint(server).text
    assert "get_weather" not in constraint(server).text
    assert "get_weather" in prompt(server)
    assert ("TEXT" in constraint(server).text) == (mode == "auto")


async def test_a_schema_that_makes_no_grammar_is_named(talk):
    """Red when the error of a constraint does not say which tool it is about."""
    bad = tool("second", parameters={"type": "object", "properties": {"x": {"pattern": "refused"}}}, strict=True)
    server = talk()
    answer = await server.chat(tools=[tool(strict=True), bad])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools[1].function.parameters")
    assert server.submits == []
    assert (await server.chat(tools=[tool(), bad], tool_choice=named("get_weather"))).status_code == 200


# -- reasoning


async def test_reasoning_is_split_off(talk):
    """Red when reasoning stays in the content, in one piece or streamed."""
    server = talk("I see.\n</think>\n\nYes", template=THINKING)
    message, _ = await message_of(server)
    assert message == {"role": "assistant", "content": "Yes", "reasoning_content": "I see."}
    deltas = [chunk["choices"][0]["delta"] for chunk in await server.events(PATH, messages=HI)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I see."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes"


async def test_reasoning_that_the_template_closed_is_not_looked_for(talk):
    """Red when enable_thinking: false leaves the answer in the reasoning."""
    server = talk("Yes", template=THINKING)
    message, _ = await message_of(server, chat_template_kwargs={"enable_thinking": False})
    assert message == {"role": "assistant", "content": "Yes"}


async def test_reasoning_can_be_left_out(talk):
    """Red when include_reasoning is ignored."""
    server = talk("I see.</think>Yes", template=THINKING)
    assert (await message_of(server, include_reasoning=False))[0] == {"role": "assistant", "content": "Yes"}


async def test_reasoning_then_calls(talk):
    """Red when a thinking model's call is lost, or white space between the two becomes content."""
    server = talk(f"I see.</think>\n\n{render_calls(HERMES, [PARIS])}", template=THINKING)
    message, finish = await message_of(server, tools=TOOLS)
    assert (message["content"], message["reasoning_content"], finish) == (None, "I see.", "tool_calls")


async def test_a_constraint_leaves_the_reasoning_free(talk):
    """Red when response_format makes a thinking model write JSON from its first thought."""
    server = talk("I see.</think>{}", template=THINKING)
    await message_of(server, response_format={"type": "json_object"})
    assert constraint(server).kind == "structural"
    await message_of(server, response_format={"type": "json_object"}, chat_template_kwargs={"enable_thinking": False})
    assert constraint(server).kind == "json_object"


async def test_formats_can_be_chosen_and_switched_off(talk):
    """Red when --tool-format or --reasoning-format has no effect."""
    server = talk("I see.</think>Yes", template=THINKING, formats={"reasoning_format": "none", "tool_format": "none"})
    assert (await message_of(server))[0]["content"] == "I see.</think>Yes"
    answer = await server.chat(tools=TOOLS)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    text = render_calls(DEEPSEEK, [PARIS])
    message, _ = await message_of(talk(text, formats={"tool_format": "deepseek"}), tools=TOOLS)
    assert message["tool_calls"][0]["function"]["name"] == "get_weather"


# -- bad input

DEEP: dict[str, Any] = {}
for _ in range(80):
    DEEP = {"type": "object", "properties": {"x": DEEP}}


def schema(**keywords: Any) -> dict[str, Any]:
    return {"tools": [tool(parameters={"type": "object", **keywords})]}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [tool("a"), tool("b"), tool("a")]}, "tools[2].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 200)]}, "tools[0].function.name"),
        ({"tools": [{"type": "browser"}]}, "tools[0].type"),
        ({"tools": [tool(str(number)) for number in range(129)]}, "tools"),
        ({"tools": "all"}, "tools"),
        (schema(properties=[]), "tools[0].function.parameters.properties"),
        (schema(properties={"a": {"type": "text"}}), "tools[0].function.parameters.properties.a.type"),
        (schema(properties={"a": 1}), "tools[0].function.parameters.properties.a"),
        (schema(required="a"), "tools[0].function.parameters.required"),
        (schema(properties={"a": {"enum": []}}), "tools[0].function.parameters.properties.a.enum"),
        (schema(anyOf=[]), "tools[0].function.parameters.anyOf"),
        (schema(properties={"a": {"anyOf": [True, 3]}}), "tools[0].function.parameters.properties.a.anyOf[1]"),
        (schema(properties={"a": {"minLength": -1}}), "tools[0].function.parameters.properties.a.minLength"),
        (schema(properties={"a": {"maximum": "3"}}), "tools[0].function.parameters.properties.a.maximum"),
        (schema(properties={"a": {"pattern": 3}}), "tools[0].function.parameters.properties.a.pattern"),
        ({"tools": [tool(parameters={"type": "array"})]}, "tools[0].function.parameters.type"),
        ({"tools": TOOLS, "tool_choice": named("nobody")}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allowed("always", "now")}, "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "now", "nobody")},
         "tool_choice.allowed_tools.tools[1].function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools",
          "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}}},
         "tool_choice.allowed_tools.tools[0]"),
        ({"tool_choice": named("now")}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": "required", "min_tokens": 3}, "min_tokens"),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"messages": [*HI, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "", "arguments": "{}"}}]}]},
         "messages[0].tool_calls[0].function.name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
    ],
    ids=lambda value: str(value)[:70],
)  # fmt: skip
async def test_refusals_name_the_place_and_submit_nothing(talk, body, field):
    """Red when tools that make no sense reach the engine, or the error does not say where."""
    server = talk()
    answer = await server.post(PATH, **{"messages": HI, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert server.submits == []


async def test_a_schema_that_is_nested_too_deep_is_refused(talk):
    """Red when depth is not bounded: everything behind the check walks the schema by recursion."""
    answer = await talk().chat(tools=[tool(parameters=DEEP)])
    assert answer.status_code == 400
    assert "nested more than" in answer.json()["error"]["message"]
