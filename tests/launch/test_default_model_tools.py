"""Tool calls of the default model behind a real server, through the openai client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import openai
import pytest

if TYPE_CHECKING:
    from tests.launch.conftest import ServerProcess

NAME = "SmolLM2-135M-Instruct"
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days", "unit"],
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
CLOCK: Any = {"type": "function", "function": {"name": "get_time"}}
QUESTION: Any = [{"role": "user", "content": "Will it rain in Paris in the next three days?"}]
ASK: Any = {"model": NAME, "messages": QUESTION, "tools": [WEATHER, CLOCK], "max_tokens": 160}
FORCED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(default_model: Path, start_server: type[ServerProcess]) -> Iterator[openai.OpenAI]:
    started = start_server("--model", str(default_model), "--served-model-name", NAME, "--memory-gb", "1")
    yield started.client()
    started.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_named_function_is_called_with_arguments_of_its_schema(client: openai.OpenAI, seed: int) -> None:
    """Red when the constraint, the parser or the forced tokens let anything else through, whatever is sampled."""
    choice = client.chat.completions.create(**ASK, tool_choice=FORCED, temperature=1.5, seed=seed).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)


def test_a_streamed_call_is_the_whole_one(client: openai.OpenAI) -> None:
    """Red when pieces are lost or doubled between the engine and the client."""
    forced = {**ASK, "tool_choice": FORCED, "temperature": 0}
    [whole] = client.chat.completions.create(**forced).choices[0].message.tool_calls or []
    pieces = [
        piece
        for chunk in client.chat.completions.create(**forced, stream=True)
        for piece in chunk.choices[0].delta.tool_calls or []
    ]
    assert len(pieces) > 2
    assert "".join(piece.function.arguments or "" for piece in pieces if piece.function) == whole.function.arguments
    assert [piece.function.name for piece in pieces if piece.function and piece.function.name] == ["get_weather"]


def test_required_gives_a_call_and_its_result_is_understood(client: openai.OpenAI) -> None:
    """Red when the conversation that a client sends back after running the call is refused."""
    body = {**ASK, "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    message = client.chat.completions.create(**body).choices[0].message
    assert message.tool_calls is not None
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    again = {**ASK, "messages": [*QUESTION, message, result], "tool_choice": "none", "max_tokens": 8}
    assert client.chat.completions.create(**again).choices[0].message.content


def test_a_schema_that_cannot_be_kept_is_refused(client: openai.OpenAI) -> None:
    """Red when the engine is asked to compile it, or the error does not name the tool."""
    bad: Any = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=x)"}}}
    second = {"type": "function", "function": {"name": "second", "parameters": bad, "strict": True}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASK, "tools": [WEATHER, second]})
    assert caught.value.param == "tools[1].function.parameters"
