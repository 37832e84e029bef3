"""The server's routes. It reads a bank and its indexes, grades answers, and sends nothing but what it made itself."""

from __future__ import annotations

import asyncio
import re

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from viva.bank.load import Bank
from viva.errors import LookupFailed, VivaError
from viva.practice.session import Session
from viva.render.export import export, select
from viva.render.page import bank_page, static_text
from viva.web.guard import Guard
from viva.web.sources import SourcePages

MAX_BODY_BYTES = 128 * 1024
STATIC = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
LINES = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")


class AnswerBody(msgspec.Struct, forbid_unknown_fields=True):
    """What the page sends to be graded."""

    question: str
    answer: str
    follow_up: bool = False


def make_app(bank: Bank, sources: SourcePages, session: Session, *, hosts: frozenset[str]) -> Starlette:
    """`hosts` are the names under which this server may be asked for: others are refused (DNS rebinding)."""
    pages = _Pages(bank, sources, session)
    return Starlette(
        routes=[
            Route("/", pages.bank),
            Route("/static/{name}", pages.static),
            Route("/source/{source}/{path:path}", pages.source),
            Route("/export", pages.export),
            Route("/practice/grade", pages.grade, methods=["POST"]),
            Route("/practice/report.{kind}", pages.report),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={VivaError: _refused},
    )


class _Pages:
    def __init__(self, bank: Bank, sources: SourcePages, session: Session) -> None:
        self._bank, self._sources, self._session = bank, sources, session
        self._page = bank_page(bank, bank.questions, link=sources.link)
        self._grading = asyncio.Lock()

    async def bank(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise LookupFailed(f"no file {name!r}", field="name")
        return Response(static_text(name), media_type=STATIC[name])

    def source(self, request: Request) -> Response:
        name, path = request.path_params["source"], request.path_params["path"]
        hit = _lines(request.query_params.get("lines"))
        if hit and request.query_params.get("fragment"):
            return HTMLResponse(self._sources.fragment(name, path, hit))
        return HTMLResponse(self._sources.page(name, path, hit))

    def export(self, request: Request) -> Response:
        kind = request.query_params.get("format", "")
        made = export(self._bank, select(self._bank, request.query_params.getlist("id")), kind)
        disposition = {"content-disposition": f'attachment; filename="{made.name}"'}
        return Response(made.data, media_type=made.media_type, headers=disposition)

    async def grade(self, request: Request) -> Response:
        """One answer at a time: the session is written after each."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise VivaError("send application/json", field="content-type")
        try:
            body = msgspec.json.decode(await _body(request), type=AnswerBody)
        except msgspec.DecodeError as error:
            raise VivaError(f"the body is not an answer: {error}", field="body") from error
        [question] = select(self._bank, [body.question])
        async with self._grading:
            answer = self._session.follow_up if body.follow_up else self._session.answer
            graded = await asyncio.to_thread(answer, question, body.answer)
        return JSONResponse(msgspec.to_builtins(graded))

    async def report(self, request: Request) -> Response:
        if request.path_params["kind"] == "json":
            return Response(self._session.json(), media_type="application/json")
        return PlainTextResponse(self._session.markdown(), media_type="text/markdown")


def _lines(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = LINES.fullmatch(text)
    if not match:
        raise LookupFailed(f"lines={text!r}: give a number, or two with a hyphen", field="lines")
    return int(match[1]), int(match[2] or match[1])


async def _body(request: Request) -> bytes:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise VivaError(f"the answer is longer than {MAX_BODY_BYTES} bytes", field="answer")
    return data


async def _refused(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, LookupFailed) else 400
    return JSONResponse({"error": str(error)}, status_code=status)
