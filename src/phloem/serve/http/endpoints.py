"""The endpoints: each turns one exchange into calls of serve.openai."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from phloem.core.clock import Clock
from phloem.core.errors import Overloaded, PhloemError, RequestFailed
from phloem.serve.http.admission import Admission
from phloem.serve.http.errors import ClientGone, json_response
from phloem.serve.http.exchange import KV_FROM, read_json_body, send_events, until_disconnect
from phloem.serve.observe.metrics import CONTENT_TYPE, Metrics
from phloem.serve.observe.requests import RequestObserver
from phloem.serve.openai.backend import Backend
from phloem.serve.openai.generation import Generation
from phloem.serve.openai.parse import parse_body
from phloem.serve.openai.responses import ModelCard, ModelList

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class Answer(Protocol):
    """An accepted request, read once: as chunks or whole."""

    @property
    def is_stream(self) -> bool:
        """Whether the caller asked for chunks."""

    @property
    def generations(self) -> Sequence[Generation]:
        """One per prompt."""

    def chunks(self) -> AsyncGenerator[Any, None]:
        """What a stream sends."""

    async def whole(self) -> msgspec.Struct:
        """The answer in one piece."""


class Prepare(Protocol[R_contra]):
    """Judges and tokenizes a request; nothing is submitted before its answer is read."""

    async def __call__(
        self, request: R_contra, *, request_id: str, backend: Backend, observer: RequestObserver
    ) -> Answer:
        """Raises a CallerError."""


class GenerationEndpoint(Generic[R]):
    """POST of a prompt, as an ASGI application: back-pressure first, then parse, prepare, answer."""

    def __init__(
        self,
        *,
        id_prefix: str,
        decoder: msgspec.json.Decoder[R],
        prepare: Prepare[R],
        num_prompts: Callable[[R], int],
        backend: Backend,
        admission: Admission,
        metrics: Metrics,
        clock: Clock,
        max_body_bytes: int,
    ) -> None:
        self._id_prefix = id_prefix
        self._decoder = decoder
        self._prepare = prepare
        self._num_prompts = num_prompts
        self._backend = backend
        self._admission = admission
        self._metrics = metrics
        self._clock = clock
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = f"{self._id_prefix}-{uuid.uuid4().hex}"
        observer = RequestObserver(request_id=request_id, route=scope["path"], metrics=self._metrics, clock=self._clock)
        outcome: PhloemError | None = RequestFailed("interrupted")
        try:
            self._admission.check()
            body = await read_json_body(scope, receive, max_bytes=self._max_body_bytes)
            with self._admission.ticket() as ticket:
                request = parse_body(body, self._decoder)
                ticket.widen(self._num_prompts(request))
                outcome = await until_disconnect(receive, self._answer(request, request_id, observer, scope, send))
        except ClientGone as error:
            outcome = error
        except PhloemError as error:
            outcome = error
            if isinstance(error, Overloaded):
                self._metrics.rejected()
            raise
        finally:
            observer.end(outcome)

    async def _answer(
        self, request: R, request_id: str, observer: RequestObserver, scope: Scope, send: Send
    ) -> PhloemError | None:
        """Returns the error that ended a stream early; raises one that came before the first byte."""
        answer = await self._prepare(request, request_id=request_id, backend=self._backend, observer=observer)
        observer.accepted(num_prompt_tokens=sum(len(one.submit.prompt) for one in answer.generations))
        if (address := Headers(scope=scope).get(KV_FROM)) is not None:
            self._backend.check_decodes(address)
            for generation in answer.generations:
                generation.compute_prompt_at(address)
        if answer.is_stream:
            return await send_events(answer.chunks(), send)
        await json_response(await answer.whole())(scope, _no_receive, send)
        return None


async def _no_receive() -> Message:
    raise AssertionError("a response does not read")


class TextEndpoint(Generic[R]):
    """POST that needs the tokenizer only."""

    def __init__(
        self,
        *,
        decoder: msgspec.json.Decoder[R],
        handle: Callable[..., Awaitable[msgspec.Struct]],
        backend: Backend,
        max_body_bytes: int,
    ) -> None:
        self._decoder = decoder
        self._handle = handle
        self._backend = backend
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json_body(scope, receive, max_bytes=self._max_body_bytes)
        request = parse_body(body, self._decoder)
        response = json_response(await self._handle(request, backend=self._backend))
        await response(scope, receive, send)


class InfoEndpoints:
    """GETs about the server itself."""

    def __init__(self, *, backend: Backend, admission: Admission, metrics: Metrics) -> None:
        self._backend = backend
        self._admission = admission
        self._metrics = metrics

    async def models(self, _: Request) -> Response:
        """GET /v1/models."""
        return json_response(ModelList([self._card()]))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        self._backend.check_model(request.path_params["model"])
        return json_response(self._card())

    async def health(self, _: Request) -> Response:
        """GET /health: 200 while the engine lives, or is still starting; 503 once it died."""
        is_alive = self._backend.client.is_alive
        return json_response({"status": "ok" if is_alive else "engine dead"}, status=200 if is_alive else 503)

    async def ready(self, _: Request) -> Response:
        """GET /ready: 200 while requests are answered; 503 before the engine is ready, while draining, once it died.

        With 200 comes whether steps run `warm`, or still `eager`: slower than they will be.
        """
        client = self._backend.client
        reasons = {
            "engine dead": not client.is_alive,
            "starting": client.engine is None,
            "draining": self._admission.is_draining,
        }
        reason = next((name for name, holds in reasons.items() if holds), None)
        if reason is not None:
            return json_response({"status": reason}, status=503)
        latest = client.stats() or client.engine
        is_warm = latest is None or latest.is_warm
        return json_response({"status": "ready", "steps": "warm" if is_warm else "eager"})

    async def transfer(self, _: Request) -> Response:
        """GET /transfer: what a router must know to pair replicas; 503 before the engine is ready."""
        if (engine := self._backend.client.engine) is None:
            return json_response({"status": "starting"}, status=503)
        return json_response({"role": engine.role, "address": engine.kv_address, "fingerprint": engine.kv_fingerprint})

    async def metrics(self, _: Request) -> Response:
        """GET /metrics: Prometheus text."""
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    def _card(self) -> ModelCard:
        backend = self._backend
        context = None if backend.client.engine is None else backend.client.engine.max_model_len
        return ModelCard(id=backend.model_name, created=backend.created, max_model_len=context)
