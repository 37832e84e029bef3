"""POST /v1/completions as a client sees it."""

from __future__ import annotations

import pytest

from phloem.core import wire

pytestmark = pytest.mark.anyio
PATH = "/v1/completions"


async def test_answer_in_one_piece(serve):
    """Red when text, finish reason, stop reason or usage are wrong."""
    body = (await serve(says=["Hello"]).complete("abc", max_tokens=10)).json()
    assert (body["object"], body["model"], body["id"][:5]) == ("text_completion", "tiny", "cmpl-")
    choice = {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop", "stop_reason": 257}
    assert body["choices"] == [choice]
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_stream_pieces_make_the_same_answer(serve):
    """Red when streaming loses text, sends empty chunks, or ends without a finish reason."""
    server = serve(says=["Grüße 🙂"])
    whole = (await server.complete("abc", max_tokens=50)).json()["choices"][0]
    chunks = await server.events(PATH, prompt="abc", max_tokens=50)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"] == "Grüße 🙂"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["choices"][0]["text"] for chunk in chunks[:-1])
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_chunk_comes_last_and_only_when_asked_for(serve):
    """Red when include_usage is ignored, or its chunk carries choices."""
    server = serve(says=["Hi"])
    *chunks, last = await server.events(PATH, prompt="abc", stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 6)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97], [98, 99]], [b"a", b"bc"]),
    ],
)
async def test_prompt_forms(serve, prompt, expected):
    """Red when one of the four forms is read as another; choices are numbered prompt by prompt."""
    server = serve()
    body = (await server.complete(prompt, n=2, max_tokens=2)).json()
    assert [bytes(submit.prompt) for submit in server.submits] == expected
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(expected)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert len({submit.request_id for submit in server.submits}) == len(expected)


async def test_echo_repeats_the_prompt_in_every_choice(serve):
    """Red when echo is lost in streams, for token ids, or for the second choice."""
    server = serve(says=["x", "y"])
    for prompt in ("abc", [97, 98, 99]):
        body = (await server.complete(prompt, echo=True, n=2)).json()
        assert [choice["text"] for choice in body["choices"]] == ["abcx", "abcy"]
    chunks = await server.events(PATH, prompt="abc", echo=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abcx"


async def test_logprobs_are_parallel_to_the_tokens(serve):
    """Red when the lists differ in length, or streamed offsets restart."""
    server = serve(says=["xyz"])
    written = (await server.complete("ab", logprobs=2)).json()["choices"][0]["logprobs"]
    assert written["tokens"] == ["x", "y", "z", "<|im_end|>"]
    assert written["text_offset"] == [0, 1, 2, 3]
    assert written["token_logprobs"] == [-0.5] * 4
    assert written["top_logprobs"][0] == {"x": -0.5, "y": -1.5}
    assert server.submits[0].sampling.logprobs == 2
    pieces = [chunk["choices"][0]["logprobs"] for chunk in await server.events(PATH, prompt="ab", logprobs=2)]
    for name, values in written.items():
        assert [item for piece in pieces for item in piece[name]] == values


async def test_echo_with_logprobs_scores_the_prompt(serve):
    """Red when prompt log-probabilities are not asked of the engine, or the first token gets one."""
    server = serve(says=["x"])
    choice = (await server.complete("abc", echo=True, logprobs=1)).json()["choices"][0]
    assert server.submits[0].sampling.prompt_logprobs == 1
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "x", "<|im_end|>"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]


async def test_echo_with_logprobs_of_several_prompts(serve):
    """Red when the second prompt's echo begins with the first one's token."""
    body = (await serve().complete(["ab", "cd"], echo=True, logprobs=0, max_tokens=1, n=2)).json()
    assert [choice["logprobs"]["tokens"][:2] for choice in body["choices"]] == [["a", "b"]] * 2 + [["c", "d"]] * 2


async def test_a_token_that_the_model_has_no_row_for_is_refused(serve):
    """Red when a tokenizer larger than the model sends the engine an id out of range."""
    server = serve(ready=wire.Ready(model="tiny", max_model_len=64, max_prompt_len=63, vocab_size=256))
    answer = await server.complete("a<|im_end|>", allow_special_tokens=True)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


async def test_no_tokens_with_echo_scores_only_the_prompt(serve):
    """Red when max_tokens 0 with echo generates, bills, or is refused."""
    server = serve(says=["xyz"])
    body = (await server.complete("abc", echo=True, logprobs=0, max_tokens=0)).json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("abc", "length")
    assert body["choices"][0]["logprobs"]["tokens"] == ["a", "b", "c"]
    assert body["usage"]["completion_tokens"] == 0
    assert server.submits[0].sampling.max_tokens == 1


async def test_extensions_reach_the_engine(serve):
    """Red when priority, salt, stop strings or the special-token switches are dropped."""
    server = serve()
    await server.complete("<|im_end|>", priority=3, cache_salt="s", stop=["q"])
    await server.complete("<|im_end|>", allow_special_tokens=True)
    first, second = server.submits
    assert (first.priority, first.namespace, first.sampling.stop) == (3, "s", ("q",))
    assert bytes(first.prompt) == b"<|im_end|>"
    assert second.prompt == (257,)


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": ["a", ""]}, "prompt", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
        ({"prompt": [[1], 1]}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 1025}, "prompt", "invalid_value"),
        ({"prompt": [258]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [10**30]}, "prompt", "invalid_value"),
        ({"prompt": "x" * 256}, "prompt", "context_length_exceeded"),
        ({"prompt": ["x" * 20_000, "y"]}, "prompt", "context_length_exceeded"),
        ({"prompt": "x" * 2_000_000}, "prompt", "context_length_exceeded"),
        ({"prompt": "x", "model": "gpt-4"}, "model", "model_not_found"),
        ({"prompt": "x", "stop": [""]}, "stop", "invalid_value"),
        ({"prompt": "x", "stop": ["y" * 1024] * 1000}, "stop", "invalid_value"),
        ({"prompt": "x", "stop": "y" * 1_000_000}, "stop", "invalid_value"),
        ({"prompt": "x", "logprobs": 21}, "logprobs", "invalid_value"),
        ({"prompt": "x", "logprobs": -1}, "logprobs", "invalid_value"),
        ({"prompt": "x", "best_of": 3}, "best_of", "unsupported_value"),
        ({"prompt": "x", "suffix": "y"}, "suffix", "unsupported_value"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"prompt": "x", "max_tokens": 0, "stream": True}, "max_tokens", "invalid_value"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_refusals_name_the_field_and_submit_nothing(serve, body, field, code):
    """Red when a bad request reaches the engine, hangs, or its error does not name the field."""
    server = serve()
    answer = await server.post(PATH, **body)
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (field, code)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert server.submits == []
    assert len(error["message"]) < 400
