"""POST /v1/chat/completions as a client sees it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
IM_START, IM_END = 256, 257


def prompt_of(server) -> tuple[int, ...]:
    return server.submits[-1].prompt


async def test_answer_in_one_piece(serve):
    """Red when message, finish reason or usage are wrong, or max_tokens has a small default."""
    server = serve(says=["Hello"])
    body = (await server.chat()).json()
    assert (body["object"], body["id"][:9]) == ("chat.completion", "chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": 257,
        }
    ]
    prompt = (IM_START, *b"user\nhi", IM_END, *b"\n", IM_START, *b"assistant\n")
    assert prompt_of(server) == prompt
    assert body["usage"]["prompt_tokens"] == len(prompt)
    assert server.submits[0].sampling.max_tokens == 256 - len(prompt)


async def test_stream_is_role_then_text_then_finish_then_usage(serve):
    """Red when the order of the OpenAI stream changes."""
    server = serve(says=["Hé"])
    chunks = await server.events(PATH, messages=HI, stream_options={"include_usage": True})
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "H"},
        {"content": "é"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 4)


async def test_every_choice_of_a_stream_has_its_own_role_text_and_finish(serve):
    """Red when choices share a role chunk or one is not finished."""
    server = serve(says=["one", "twelve"])
    chunks = [chunk["choices"][0] for chunk in await server.events(PATH, messages=HI, n=2)]
    for index, text in enumerate(["one", "twelve"]):
        mine = [choice for choice in chunks if choice["index"] == index]
        assert mine[0]["delta"].get("role") == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == text
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]


async def test_choices_are_in_order_whichever_finishes_first(serve):
    """Red when a whole answer lists choices as they finish."""
    whole = (await serve(says=["twelve", "one"]).chat(n=2)).json()["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in whole] == [(0, "twelve"), (1, "one")]


async def test_logprobs_in_one_piece_and_streamed(serve):
    """Red when top_logprobs is ignored, or a stream's entries differ from the whole answer's."""
    server = serve(says=["xé"])
    content = (await server.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["x", "�", "�", "<|im_end|>"]
    assert content[0]["bytes"] == [ord("x")]
    assert [other["token"] for other in content[0]["top_logprobs"]] == ["x", "y"]
    chunks = await server.events(PATH, messages=HI, logprobs=True, top_logprobs=2)
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == content
    plain = (await server.chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert plain[0]["top_logprobs"] == []


async def test_control_tokens_in_a_message_stay_text(serve):
    """Red when user text can end its own turn."""
    server = serve()
    await server.chat("<|im_end|>", max_tokens=1)
    assert prompt_of(server)[:18] == (IM_START, *b"user\n<|im_end|>", IM_END, *b"\n")


async def test_continue_final_message_and_generation_prompt(serve):
    """Red when the last message is closed, or a prompt for a new one is added."""
    server = serve()
    messages = [*HI, {"role": "assistant", "content": "Once"}]
    await server.post(PATH, messages=messages, continue_final_message=True, max_tokens=1)
    assert bytes(prompt_of(server)[-4:]) == b"Once"
    await server.post(PATH, messages=HI, add_generation_prompt=False, max_tokens=1)
    assert prompt_of(server)[-2:] == (IM_END, ord("\n"))


async def test_content_parts_are_joined(serve):
    """Red when a list of text parts is refused."""
    server = serve()
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert (await server.chat(parts, max_tokens=1)).status_code == 200


async def test_newer_name_of_max_tokens_wins(serve):
    """Red when max_completion_tokens is ignored."""
    server = serve()
    body = (await server.chat(max_tokens=5, max_completion_tokens=3)).json()
    assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 3)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 2_000_000}]}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": HI, "max_tokens": 0}, "max_tokens"),
        ({"messages": HI, "max_completion_tokens": -1}, "max_completion_tokens"),
        ({"messages": HI, "max_tokens": 10**9}, "max_tokens"),
        ({"messages": HI, "top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"messages": HI, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": HI, "functions": [{}]}, "functions"),
        ({"messages": HI, "response_format": {"type": "telepathy"}}, "response_format"),
        ({"messages": HI, "regex": "refused"}, "regex"),
        ({"messages": HI, "chat_template": "x"}, "chat_template"),
        (
            {"messages": HI, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_refusals_name_the_field_and_submit_nothing(serve, body, field):
    """Red when a bad request reaches the engine, or its error does not name the field."""
    server = serve()
    answer = await server.post(PATH, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert server.submits == []


async def test_what_clients_send_along_is_ignored(serve):
    """Red when a harmless field is refused."""
    extras = {"metadata": {}, "store": False, "user": "u", "service_tier": "auto", "tools": [], "tool_choice": "none"}
    extras |= {"response_format": {"type": "text"}, "parallel_tool_calls": True, "reasoning_effort": "low"}
    assert (await serve().chat(max_tokens=1, **extras)).status_code == 200
