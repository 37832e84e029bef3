"""Routes, error shapes, request ids, the API key and CORS."""

from __future__ import annotations

import pytest

from phloem.core import wire
from phloem.core.errors import EngineDead
from phloem.serve.http.app import Limits

pytestmark = pytest.mark.anyio


def error_of(response):
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


async def test_models_lists_the_served_model_with_its_context(serve):
    """Red when the card loses its id or the engine's context length."""
    server = serve()
    listed = (await server.http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [(card["id"], card["max_model_len"]) for card in listed["data"]] == [("tiny", 256)]
    assert (await server.http.get("/v1/models/tiny")).json() == listed["data"][0]
    assert error_of(await server.http.get("/v1/models/gpt-4"))["code"] == "model_not_found"


async def test_unknown_path_and_wrong_method_have_the_error_shape(serve):
    """Red when the router answers with its own text."""
    server = serve()
    missing = await server.http.get("/v1/nothing")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "unknown_path")
    wrong = await server.http.get("/v1/completions")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_request_id_is_echoed_or_made_but_never_injected(serve):
    """Red when the header is dropped, or when one with spaces or of any length is echoed."""
    server = serve()
    echoed = await server.http.get("/health", headers={"x-request-id": "abc-1"})
    assert echoed.headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 200):
        answer = await server.http.get("/health", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"] != bad
    first, second = [(await server.http.get("/health")).headers["x-request-id"] for _ in range(2)]
    assert first != second


async def test_api_key_guards_everything_but_health_and_documentation(serve):
    """Red when a path is left open, or health needs a key."""
    server = serve(limits=Limits(api_key="s3cret"))
    for path in ("/v1/models", "/nothing"):
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "s3cret"}, {"authorization": "Bearer é"}):
            answer = await server.http.get(path, headers={k: v.encode() for k, v in headers.items()})
            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert (await server.http.get("/v1/models", headers={"authorization": "Bearer s3cret"})).status_code == 200
    for path in ("/health", "/ready", "/metrics", "/docs", "/openapi.json"):
        assert (await server.http.get(path)).status_code == 200


async def test_cors_is_off_until_origins_are_named(serve):
    """Red when any origin is allowed by default, or a preflight, which has no key, is refused."""
    headers = {"origin": "https://app.example"}
    assert "access-control-allow-origin" not in (await serve().http.get("/health", headers=headers)).headers
    named = serve(limits=Limits(cors_origins=("https://app.example",)))
    assert (await named.http.get("/health", headers=headers)).headers["access-control-allow-origin"] == headers[
        "origin"
    ]
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    keyed = serve(limits=Limits(cors_origins=("https://app.example",), api_key="k"))
    assert (await keyed.http.options("/v1/completions", headers=headers | asks)).status_code == 200
    stranger = await named.http.get("/health", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in stranger.headers


async def test_before_the_engine_is_ready_health_is_good_and_requests_wait_for_retry(serve):
    """Red when a request is accepted without limits, or /ready lies."""
    server = serve(ready=None)
    assert (await server.http.get("/health")).status_code == 200
    assert (await server.http.get("/ready")).json() == {"status": "starting"}
    refused = await server.complete()
    assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    ready = wire.Ready(model="tiny", max_model_len=256, max_prompt_len=255, vocab_size=258, is_warm=False)
    server.engine.route(ready)
    assert (await server.http.get("/ready")).json() == {"status": "ready", "steps": "eager"}
    server.engine.route(wire.Stats(*range(13), is_warm=True))
    assert (await server.http.get("/ready")).json() == {"status": "ready", "steps": "warm"}
    assert (await server.complete()).status_code == 200


async def test_dead_engine_turns_health_and_requests_503_until_it_is_restarted(serve):
    """Red when death is not seen by /health, or is final although a new engine said Ready."""
    server = serve()
    server.engine.fail_all(EngineDead("exited with code -9"))
    assert (await server.http.get("/health")).status_code == 503
    assert (await server.http.get("/ready")).json() == {"status": "engine dead"}
    for body in ({}, {"stream": True}):
        refused = await server.complete(**body)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "engine_dead")
    server.engine.route(wire.Ready(model="tiny", max_model_len=256, max_prompt_len=255, vocab_size=258))
    assert (await server.http.get("/health")).status_code == 200


async def test_a_defect_is_a_typed_500_without_a_traceback(serve, monkeypatch):
    """Red when an unforeseen exception reaches the client as text."""
    server = serve(script=lambda submit, choice: [1 << 40])
    monkeypatch.setattr("phloem.serve.openai.generation.Choice.advance", lambda *_: 1 / 0)
    broken = await server.complete()
    assert (broken.status_code, error_of(broken)["type"]) == (500, "server_error")
    assert "division" not in broken.text
