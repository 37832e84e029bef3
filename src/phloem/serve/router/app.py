"""The router's routes: its own (health, metrics, who is behind it) and everything else, which a replica answers."""

from __future__ import annotations

import hmac

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from phloem.core.errors import PhloemError, Unauthorized
from phloem.serve.http.admission import Admission
from phloem.serve.http.errors import json_response, on_defect, on_http_error, on_phloem_error
from phloem.serve.http.exchange import read_json_body
from phloem.serve.observe.metrics import CONTENT_TYPE
from phloem.serve.openai.parse import parse_body
from phloem.serve.router.fleet import Fleet, Replica
from phloem.serve.router.metrics import RouterMetrics
from phloem.serve.router.proxy import Proxy

LOOPBACK = frozenset({"127.0.0.1", "::1"})
MAX_ADMIN_BYTES = 10_000


class NewReplica(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /replicas."""

    url: str


class RemoveReplica(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """DELETE /replicas: it gets nothing new, and `drain_timeout_s` for what it has."""

    url: str
    drain_timeout_s: float = 60.0


_decode_new = msgspec.json.Decoder(NewReplica)
_decode_remove = msgspec.json.Decoder(RemoveReplica)


class Admin:
    """Who is behind the router. For whoever knows the admin key; without one, for this machine only."""

    def __init__(self, *, fleet: Fleet, admission: Admission, metrics: RouterMetrics, admin_key: str | None) -> None:
        self._fleet, self._admission, self._metrics = fleet, admission, metrics
        self._admin_key = admin_key

    async def health(self, _: Request) -> Response:
        """GET /health: 200 while the router lives."""
        return json_response({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """GET /ready: 200 while some replica takes requests."""
        num_ready = len(self._fleet.available())
        is_ready = num_ready > 0 and not self._admission.is_draining
        status = "ready" if is_ready else "draining" if self._admission.is_draining else "no replica is ready"
        return json_response({"status": status, "replicas": num_ready}, status=200 if is_ready else 503)

    async def metrics(self, _: Request) -> Response:
        """GET /metrics: Prometheus text."""
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def replicas(self, request: Request) -> Response:
        """GET, POST and DELETE /replicas."""
        self._check_key(request)
        if request.method == "GET":
            return json_response({"model": self._fleet.model, "replicas": list(map(_card, self._replicas()))})
        body = await read_json_body(request.scope, request.receive, max_bytes=MAX_ADMIN_BYTES)
        if request.method == "POST":
            return json_response(_card(await self._fleet.add(parse_body(body, _decode_new).url)), status=201)
        wanted = parse_body(body, _decode_remove)
        await self._fleet.remove(wanted.url, drain_timeout_s=wanted.drain_timeout_s)
        return json_response({"removed": wanted.url})

    def _replicas(self) -> list[Replica]:
        return list(self._fleet.replicas.values())

    def _check_key(self, request: Request) -> None:
        if self._admin_key is None:
            if request.client is None or request.client.host not in LOOPBACK:
                raise Unauthorized("replicas are managed from this machine only; start the router with --admin-key")
            return
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, f"Bearer {self._admin_key}".encode()):
            raise Unauthorized("the admin key is missing or wrong; send it as 'Authorization: Bearer KEY'")


def create_router_app(admin: Admin, proxy: Proxy) -> Starlette:
    """The ASGI application of a router."""
    return Starlette(
        routes=[
            Route("/health", admin.health),
            Route("/ready", admin.ready),
            Route("/metrics", admin.metrics),
            Route("/replicas", admin.replicas, methods=["GET", "POST", "DELETE"]),
            Route("/{path:path}", proxy, methods=["GET", "POST"]),
        ],
        exception_handlers={PhloemError: on_phloem_error, HTTPException: on_http_error, Exception: on_defect},
    )


def _card(replica: Replica) -> dict[str, object]:
    load = replica.load
    return {
        "url": replica.address.url,
        "role": replica.offer.role,
        "state": replica.state,
        "reason": replica.reason,
        "requests": load.num_requests,
        "tokens": load.num_tokens,
        "cached_pages": load.view.num_pages,
        "is_followed": load.view.is_followed,
    }
