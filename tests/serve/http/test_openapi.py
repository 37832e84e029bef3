"""The description of the API: complete, consistent, and readable without a network."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.anyio


def references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


async def test_every_route_is_described_and_every_reference_resolves(serve):
    """Red when a route is added without a description, or a schema is missing."""
    server = serve()
    document = (await server.http.get("/openapi.json")).json()
    routes = {route.path.replace(":path", "") for route in server.app.routes} - {"/docs", "/openapi.json"}
    assert set(document["paths"]) == routes
    schemas = document["components"]["schemas"]
    assert {reference.rsplit("/", 1)[1] for reference in references(document)} <= set(schemas)
    assert {"prompt", "max_tokens", "temperature", "top_k"} <= set(schemas["CompletionRequest"]["properties"])
    assert schemas["ChatRequest"]["required"] == ["messages"]


async def test_examples_are_requests_that_work(serve):
    """Red when the documentation shows a body that the server refuses."""
    server = serve()
    document = (await server.http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for body in (methods.get("post") or {}).get("requestBody", {}).get("content", {}).values():
            assert (await server.http.post(path, json=body["example"])).status_code == 200, path


async def test_docs_page_shows_routes_and_fields_and_loads_nothing(serve):
    """Red when the page needs another host, or leaves a route out."""
    server = serve()
    page = await server.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text
    assert "max_completion_tokens" in page.text
    assert not re.search(r"<(script|link|img)|https?://(?!127\.0\.0\.1)", page.text)
