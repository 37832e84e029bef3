"""create_app: the routes, and what stands around them."""

from __future__ import annotations

import time

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from phloem.core.clock import Clock
from phloem.core.errors import PhloemError
from phloem.serve.client import EngineClient
from phloem.serve.http import openapi
from phloem.serve.http.admission import Admission
from phloem.serve.http.cache_events import CacheEvents
from phloem.serve.http.endpoints import GenerationEndpoint, InfoEndpoints, TextEndpoint
from phloem.serve.http.errors import json_response, on_defect, on_http_error, on_phloem_error
from phloem.serve.http.frame import Frame
from phloem.serve.observe.metrics import Metrics
from phloem.serve.openai import chat, completions, tokens
from phloem.serve.openai.backend import Backend
from phloem.serve.openai.constraints import ConstraintCheck
from phloem.serve.programs.service import ProgramService, ProgramSettings
from phloem.serve.programs.wire import decoder as program_decoder
from phloem.serve.text.chat import ChatTemplate
from phloem.serve.text.formats.choose import Formats
from phloem.serve.text.tokenizer import Tokenizer


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the server takes from outside. No `cors_origins`: browsers on other sites get nothing."""

    max_body_bytes: int = 8_000_000
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()


def create_app(
    *,
    client: EngineClient,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    model_name: str,
    limits: Limits,
    metrics: Metrics,
    clock: Clock,
    admission: Admission,
    constraints: ConstraintCheck,
    formats: Formats,
    programs: ProgramSettings | None = None,
) -> Starlette:
    """The ASGI application. It may serve before the engine is ready: requests are then answered with 503."""
    backend = Backend(
        client=client,
        tokenizer=tokenizer,
        chat_template=chat_template,
        model_name=model_name,
        created=int(time.time()),
        constraints=constraints,
        formats=formats,
    )
    metrics.watch_engine(client.stats)
    return Starlette(
        routes=[
            *_generation_routes(backend, admission=admission, metrics=metrics, clock=clock, limits=limits),
            _program_route(
                ProgramService(backend=backend, settings=programs or ProgramSettings()),
                backend,
                admission=admission,
                metrics=metrics,
                clock=clock,
                limits=limits,
            ),
            *_text_routes(backend, limits=limits),
            *_info_routes(InfoEndpoints(backend=backend, admission=admission, metrics=metrics)),
            Route("/cache/events", CacheEvents(client=client, admission=admission), methods=["GET"]),
            *_documentation_routes(model_name),
        ],
        middleware=[
            *([_cors(limits)] if limits.cors_origins else []),  # outside: a browser asks without its key first
            Middleware(Frame, api_key=limits.api_key),
        ],
        exception_handlers={PhloemError: on_phloem_error, HTTPException: on_http_error, Exception: on_defect},
    )


def _generation_routes(
    backend: Backend, *, admission: Admission, metrics: Metrics, clock: Clock, limits: Limits
) -> list[Route]:
    complete = GenerationEndpoint(
        id_prefix="cmpl",
        decoder=completions.decoder,
        prepare=completions.prepare,
        num_prompts=completions.num_prompts,
        backend=backend,
        admission=admission,
        metrics=metrics,
        clock=clock,
        max_body_bytes=limits.max_body_bytes,
    )
    converse = GenerationEndpoint(
        id_prefix="chatcmpl",
        decoder=chat.decoder,
        prepare=chat.prepare,
        num_prompts=lambda _: 1,
        backend=backend,
        admission=admission,
        metrics=metrics,
        clock=clock,
        max_body_bytes=limits.max_body_bytes,
    )
    return [
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/chat/completions", converse, methods=["POST"]),
    ]


def _program_route(
    service: ProgramService, backend: Backend, *, admission: Admission, metrics: Metrics, clock: Clock, limits: Limits
) -> Route:
    run = GenerationEndpoint(
        id_prefix="program",
        decoder=program_decoder,
        prepare=service.prepare,
        num_prompts=service.num_places,
        backend=backend,
        admission=admission,
        metrics=metrics,
        clock=clock,
        max_body_bytes=limits.max_body_bytes,
    )
    return Route("/v1/programs", run, methods=["POST"])


def _text_routes(backend: Backend, *, limits: Limits) -> list[Route]:
    size = limits.max_body_bytes
    encode = TextEndpoint(decoder=tokens.tokenize_decoder, handle=tokens.tokenize, backend=backend, max_body_bytes=size)
    decode = TextEndpoint(
        decoder=tokens.detokenize_decoder, handle=tokens.detokenize, backend=backend, max_body_bytes=size
    )
    return [Route("/tokenize", encode, methods=["POST"]), Route("/detokenize", decode, methods=["POST"])]


def _info_routes(info: InfoEndpoints) -> list[Route]:
    return [
        Route("/v1/models", info.models),
        Route("/v1/models/{model:path}", info.model),
        Route("/health", info.health),
        Route("/ready", info.ready),
        Route("/transfer", info.transfer),
        Route("/metrics", info.metrics),
    ]


def _documentation_routes(model_name: str) -> list[Route]:
    document = openapi.document(model_name)
    page = openapi.page(document)

    async def schema(_: Request) -> Response:
        return json_response(document)

    async def docs(_: Request) -> Response:
        return HTMLResponse(page)

    return [Route("/openapi.json", schema), Route("/docs", docs)]


def _cors(limits: Limits) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=list(limits.cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )
