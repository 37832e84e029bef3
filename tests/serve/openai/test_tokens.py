"""POST /tokenize and /detokenize."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio


async def test_there_and_back(serve):
    """Red when ids, count or text change on the way."""
    server = serve()
    body = (
        await server.post("/tokenize", prompt="né<|im_end|>", return_token_strs=True, allow_special_tokens=True)
    ).json()
    assert body["tokens"] == [*"né".encode(), 257]
    assert (body["count"], body["max_model_len"]) == (4, 256)
    assert body["token_strs"] == ["n", "bytes:\\xc3", "bytes:\\xa9", "<|im_end|>"]
    assert (await server.post("/detokenize", tokens=body["tokens"])).json() == {"prompt": "né<|im_end|>"}


async def test_messages_go_through_the_template(serve):
    """Red when /tokenize counts otherwise than chat does."""
    server = serve()
    messages = [{"role": "user", "content": "hi"}]
    body = (await server.post("/tokenize", messages=messages)).json()
    await server.post("/v1/chat/completions", messages=messages, max_tokens=1)
    assert tuple(body["tokens"]) == server.submits[0].prompt


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": []}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
async def test_refusals(serve, path, body, field):
    """Red when the field is not named."""
    answer = await serve().post(path, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
