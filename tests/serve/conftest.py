"""A whole server without a model: a tokenizer whose ids are bytes, and an engine that says what a test scripts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import tokenizers
from starlette.applications import Starlette
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from phloem.core import wire
from phloem.core.clock import MonotonicClock
from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint
from phloem.serve.client import FakeEngineClient
from phloem.serve.http.admission import Admission
from phloem.serve.http.app import Limits, create_app
from phloem.serve.observe.metrics import Metrics
from phloem.serve.text.chat import ChatTemplate
from phloem.serve.text.formats.choose import choose_formats
from phloem.serve.text.pieces import BYTE_ALPHABET
from phloem.serve.text.tokenizer import Tokenizer

IM_START, IM_END = 256, 257
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READY = wire.Ready(model="tiny", max_model_len=256, max_prompt_len=255, vocab_size=258)


def byte_tokenizer() -> Tokenizer:
    """Token id = byte; then <|im_start|> and <|im_end|>, which ends a text."""
    backend = tokenizers.Tokenizer(models.BPE(dict(BYTE_ALPHABET), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return Tokenizer(backend, eos_ids=(IM_END,))


@dataclass
class Server:
    """An app and what it was made of."""

    app: Starlette
    engine: FakeEngineClient
    admission: Admission
    metrics: Metrics
    http: httpx.AsyncClient

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def complete(self, prompt: Any = "hi", **body: Any) -> httpx.Response:
        return await self.post("/v1/completions", model="tiny", prompt=prompt, **body)

    async def chat(self, content: Any = "hi", **body: Any) -> httpx.Response:
        return await self.post(
            "/v1/chat/completions", **{"model": "tiny", "messages": [{"role": "user", "content": content}], **body}
        )

    async def events(self, path: str, **body: Any) -> list[Any]:
        """The parsed events of a stream; its [DONE] must come last and is left out."""
        answer = await self.post(path, **{"model": "tiny", "stream": True, **body})
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
        lines = [line for line in answer.text.split("\n\n") if line]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    @property
    def submits(self) -> list[wire.Submit]:
        return [command for command in self.engine.commands if isinstance(command, wire.Submit)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer, {"default": TEMPLATE})


class Trials:
    """Refuses constraints whose text holds "refused"; remembers all."""

    def __init__(self) -> None:
        self.seen: list[tuple[Constraint, str]] = []

    async def check(self, constraint: Constraint, *, field: str) -> None:
        self.seen.append((constraint, field))
        if "refused" in constraint.text:
            raise InvalidRequest(f"{field}: refused", field=field)


@pytest.fixture(scope="module")
def constraints() -> Trials:
    return Trials()


@pytest.fixture
async def serve(tokenizer: Tokenizer, constraints: Trials, anyio_backend: str) -> AsyncIterator[Callable[..., Server]]:
    """make(says=..., step_s=..., ready=..., max_queue=..., limits=..., template=..., formats=...) -> Server.

    Choice i says says[i], then ends."""
    made: list[Server] = []

    def make(
        *,
        ready: wire.Ready | None = READY,
        max_queue: int = 64,
        limits: Limits | None = None,
        says: Sequence[str] | None = None,
        template: str = TEMPLATE,
        formats: dict[str, str] | None = None,
        **engine_options: Any,
    ) -> Server:
        if says is not None:
            engine_options["script"] = lambda _, choice: [*says[choice].encode(), IM_END]
        engine = FakeEngineClient(ready=ready, end_ids=frozenset({IM_END}), **engine_options)
        chat = ChatTemplate(tokenizer, {"default": template})
        metrics, admission = Metrics(model_name="tiny"), Admission(max_queue=max_queue)
        app = create_app(
            client=engine,
            tokenizer=tokenizer,
            chat_template=chat,
            model_name="tiny",
            limits=limits or Limits(),
            metrics=metrics,
            clock=MonotonicClock(),
            admission=admission,
            constraints=constraints,
            formats=choose_formats(chat, tokenizer, **(formats or {})),
        )
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        http = httpx.AsyncClient(transport=transport, base_url="http://test")
        made.append(Server(app, engine, admission, metrics, http))
        return made[-1]

    yield make
    for server in made:
        await server.http.aclose()
        assert server.engine.open_ids == [], "a request was left open"
        assert server.admission.num_open == 0, "a place in the queue was left taken"
