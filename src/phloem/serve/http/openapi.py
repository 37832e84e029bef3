"""The API's description: an OpenAPI 3.1 document from the wire models, and a page that shows it without any network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import msgspec

from phloem.core.wire import CacheChange
from phloem.lang.events import ProgramResult
from phloem.serve.openai import requests, responses
from phloem.serve.openai.errors import ErrorBody
from phloem.serve.programs.wire import ProgramRequest, ProgramResponse

Document = dict[str, Any]

API_VERSION = "1"
_REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    "400": "a field is malformed or out of range; `param` names it",
    "401": "the API key is missing or wrong",
    "404": "the model is not served here",
    "413": "the body is too large",
    "503": "the queue is full, the engine is starting or dead; see Retry-After",
}


_PROGRAM: dict[str, Any] = {
    "program": {
        "version": 1,
        "name": "capital",
        "body": [
            {"op": "text", "value": {"op": "const", "value": "The capital of France is"}},
            {"op": "gen", "name": "city", "max_tokens": 8},
        ],
    }
}


class _Operation(msgspec.Struct, frozen=True):
    method: str
    path: str
    summary: str
    answer: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | None = None
    example: dict[str, Any] | None = None


def _operations(model_name: str) -> list[_Operation]:
    conversation = [{"role": "user", "content": "Why is the sky blue?"}]
    return [
        _Operation(
            method="post",
            path="/v1/chat/completions",
            summary="The next message of a conversation",
            body=requests.ChatRequest,
            answer=responses.ChatCompletion,
            chunk=responses.ChatChunk,
            example={"model": model_name, "messages": conversation, "max_tokens": 64},
        ),
        _Operation(
            method="post",
            path="/v1/completions",
            summary="The continuation of one or more prompts",
            body=requests.CompletionRequest,
            answer=responses.Completion,
            chunk=responses.Completion,
            example={"model": model_name, "prompt": "Once upon a time", "max_tokens": 32},
        ),
        _Operation(
            method="post",
            path="/v1/programs",
            summary="Run a structured-generation program next to the scheduler",
            body=ProgramRequest,
            answer=ProgramResponse,
            chunk=ProgramResult,
            example=_PROGRAM,
        ),
        _Operation("get", "/v1/models", "The model that is served", responses.ModelList),
        _Operation("get", "/v1/models/{model}", "One model", responses.ModelCard),
        _Operation(
            method="post",
            path="/tokenize",
            summary="Token ids of a prompt or a conversation",
            body=requests.TokenizeRequest,
            answer=responses.TokenizeResponse,
            example={"prompt": "Once upon a time"},
        ),
        _Operation(
            method="post",
            path="/detokenize",
            summary="Text of token ids",
            body=requests.DetokenizeRequest,
            answer=responses.DetokenizeResponse,
            example={"tokens": [1, 2, 3]},
        ),
        _Operation("get", "/cache/events", "What the prefix cache holds, and its changes", chunk=CacheChange),
        _Operation("get", "/health", "200 while the engine lives"),
        _Operation("get", "/ready", "200 while requests are answered"),
        _Operation("get", "/transfer", "Where other replicas fetch pages of the KV cache"),
        _Operation("get", "/metrics", "Prometheus metrics"),
    ]


def document(model_name: str) -> Document:
    """The OpenAPI document of this server."""
    operations = _operations(model_name)
    models = {model for one in operations for model in (one.body, one.answer, one.chunk) if model is not None}
    ordered = [ErrorBody, *sorted(models, key=lambda model: model.__name__)]
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Phloem", "version": API_VERSION, "description": f"Serves {model_name}."},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _described(operation: _Operation) -> dict[str, Any]:
    content = {}
    if operation.answer is not None:
        content["application/json"] = _content(operation.answer)
    if operation.chunk is not None:
        content["text/event-stream"] = _content(operation.chunk)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}{operation.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "responses": {"200": {"description": "success", "content": content}},
    }
    if operation.path.endswith("{model}"):
        described["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.body is not None:
        body = _content(operation.body) | {"example": operation.example}
        described["requestBody"] = {"required": True, "content": {"application/json": body}}
        error = {"application/json": _content(ErrorBody)}
        described["responses"] |= {code: {"description": why, "content": error} for code, why in _ERRORS.items()}
    return described


def _content(model: type[msgspec.Struct]) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(name=model.__name__)}}


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
pre { background: #f4f4f2; padding: .8rem; overflow-x: auto; border-radius: 6px }
code, pre { font: 14px/1.5 ui-monospace, monospace }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid #ddd; padding: .2rem .8rem .2rem 0; vertical-align: top }
h2 { margin-top: 2.5rem } .method { color: #0a7d4f; text-transform: uppercase } .about { white-space: pre-line }
@media (prefers-color-scheme: dark) {
  body { background: #181a1b; color: #ddd } pre { background: #242728 } td { border-color: #333 }
}
"""


def page(document: Document) -> str:
    """The document as one self-contained HTML page."""
    info, schemas = document["info"], document["components"]["schemas"]
    operations = [
        _operation_html(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tables = [_schema_html(name, schema) for name, schema in schemas.items()]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])} API</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f"The same as data: <a href=/openapi.json>openapi.json</a>.</p>"
        f"{''.join(operations)}<h1>Types</h1>{''.join(tables)}</html>"
    )


def _operation_html(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [
        f"<h2><span class=method>{method}</span> <code>{escape(path)}</code></h2><p>{escape(operation['summary'])}"
    ]
    if (body := operation.get("requestBody")) is not None:
        content = body["content"]["application/json"]
        sent = json.dumps(content["example"])
        parts.append(f". Body: {_type_html(content['schema'])}")
        command = f"curl http://127.0.0.1:8000{path} -H 'content-type: application/json' -d '{sent}'"
        parts.append(f"<pre>{escape(command)}</pre>")
    for media_type, content in operation["responses"]["200"]["content"].items():
        parts.append(f"<p>Answer ({escape(media_type)}): {_type_html(content['schema'])}")
    return "".join(parts)


def _schema_html(name: str, schema: dict[str, Any]) -> str:
    rows = []
    for field, kind in schema.get("properties", {}).items():
        must = " <b>required</b>" if field in schema.get("required", ()) else ""
        rows.append(f"<tr><td><code>{escape(field)}</code>{must}<td>{_type_html(kind)}")
    about = escape(schema.get("description", ""))
    return f"<h2 id={escape(name)}>{escape(name)}</h2><p class=about>{about}<table>{''.join(rows)}</table>"


def _type_html(kind: dict[str, Any]) -> str:
    if "$ref" in kind:
        name = escape(kind["$ref"].rsplit("/", 1)[1])
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in kind:
        return " or ".join(_type_html(option) for option in kind["anyOf"])
    if kind.get("type") == "array":
        items = kind.get("items")
        return f"list of {_type_html(items)}" if isinstance(items, dict) and items else "list"
    if "enum" in kind:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in kind["enum"])
    return escape(str(kind.get("type", "anything")))
