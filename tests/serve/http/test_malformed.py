"""Whatever bytes come in, the answer is a typed error or a success; never a 500, never a hung request."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phloem.serve.http.app import Limits
from phloem.serve.openai import requests

pytestmark = pytest.mark.anyio
JSON = {"content-type": "application/json"}
PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None))
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
REQUESTS = (requests.CompletionRequest, requests.ChatRequest, requests.TokenizeRequest, requests.DetokenizeRequest)
names = st.sampled_from(sorted({name for request in REQUESTS for name in request.__struct_fields__} | {"unknown"}))
bases = st.sampled_from([{"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}, {"tokens": [1]}, {}])
bodies = st.builds(lambda base, extra: {**base, **extra}, bases, st.dictionaries(names, values, max_size=4))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), body=bodies)
def test_any_json_gets_a_typed_answer(serve, path, body):
    """Red when some value raises outside the error tree."""
    _check(serve, path, json.dumps(body).encode())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), data=st.data())
def test_any_bytes_get_a_typed_answer(serve, path, data):
    """Red when broken JSON or UTF-8 raises outside the error tree."""
    body = bytearray(b'{"prompt": "caf\xc3\xa9 \\u00e9", "stop": ["a"], "n": 1, "messages": [{"role": "user"}]}')
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    _check(serve, path, bytes(body))


def _check(serve, path: str, body: bytes) -> None:
    async def post():
        server = serve()
        async with asyncio.timeout(5):
            return await server.http.post(path, content=body, headers=JSON)

    answer = asyncio.run(post())
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_bodies_that_are_too_large_are_refused_with_and_without_a_length(serve):
    """Red when the size is only taken from a header, or the whole body is read first."""
    server = serve(limits=Limits(max_body_bytes=100))

    async def endless():
        for _ in range(100):
            yield b"x" * 50

    async def unread():
        raise AssertionError("the header said enough")
        yield b""

    headers = JSON | {"content-length": "101"}
    declared = await server.http.post("/v1/completions", content=unread(), headers=headers)
    chunked = await server.http.post("/v1/completions", content=endless(), headers=JSON)
    for answer in (declared, chunked):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_wrong_content_type(serve, media_type):
    """Red when something else than JSON is parsed as JSON; parameters of the type are fine."""
    server = serve()
    body = b'{"prompt": "x", "max_tokens": 1}'
    answer = await server.http.post("/v1/completions", content=body, headers={"content-type": media_type})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    fine = await server.http.post(
        "/v1/completions", content=body, headers={"content-type": "Application/JSON; charset=utf-8"}
    )
    assert fine.status_code == 200


async def test_the_server_goes_on_after_all_of_it(serve):
    """Red when a bad request spoils the server for the next."""
    server = serve(max_queue=1)
    for body in (b"", b"{", b'{"prompt": "\\ud800"}', b'{"prompt": NaN}', b"[" * 100_000, b"\x00" * 1000):
        assert (await server.http.post("/v1/completions", content=body, headers=JSON)).status_code == 400
    assert (await server.complete()).status_code == 200
