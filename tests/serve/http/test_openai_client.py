"""The official openai client against a real uvicorn on a real port."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import openai
import pytest
import uvicorn

from phloem.core import wire
from phloem.core.clock import MonotonicClock
from phloem.core.errors import EngineDead
from phloem.serve.client import FakeEngineClient
from phloem.serve.http.admission import Admission
from phloem.serve.http.app import Limits, create_app
from phloem.serve.observe.metrics import Metrics
from phloem.serve.text.formats.choose import choose_formats

IM_END = 257
READY = wire.Ready(model="tiny", max_model_len=256, max_prompt_len=255, vocab_size=258)
HI = [{"role": "user", "content": "hi"}]
TEXTS = ["Grüße, 世界 🙂", "two"]


class Running:
    """A server in a thread; `call` runs a function in its event loop."""

    def __init__(self, app, engine: FakeEngineClient) -> None:
        self.engine = engine
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, args=(listener,))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def _run(self, listener: socket.socket) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[listener])

        asyncio.run(main())

    def call(self, function, *args) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *args)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture(scope="module")
def running(tokenizer, chat_template, constraints) -> Iterator[Running]:
    engine = FakeEngineClient(
        ready=READY,
        script=lambda _, choice: [*TEXTS[choice].encode(), IM_END],
        end_ids=frozenset({IM_END}),
        step_s=0.002,
    )
    app = create_app(
        client=engine,
        tokenizer=tokenizer,
        chat_template=chat_template,
        model_name="tiny",
        limits=Limits(api_key="key"),
        metrics=Metrics(model_name="tiny"),
        clock=MonotonicClock(),
        admission=Admission(max_queue=8),
        constraints=constraints,
        formats=choose_formats(chat_template, tokenizer),
    )
    running = Running(app, engine)
    yield running
    running.stop()


@pytest.fixture
def client(running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.url, api_key="key", max_retries=0, timeout=10) as client:
        yield client


def test_models(client):
    """Red when the client cannot parse the list."""
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_chat_streams_two_choices_with_usage(client):
    """Red when chunks do not parse, choices mix, or the usage chunk is missing."""
    texts, finishes, usage = {0: "", 1: ""}, {}, None
    for chunk in client.chat.completions.create(
        model="tiny", messages=HI, n=2, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes.get(choice.index)
    assert texts == dict(enumerate(TEXTS))
    assert finishes == {0: "stop", 1: "stop"}
    assert usage.completion_tokens == sum(len(text.encode()) + 1 for text in TEXTS)
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_chat_with_logprobs_and_stop(client):
    """Red when the client's types refuse our log-probabilities."""
    answer = client.chat.completions.create(
        model="tiny", messages=HI, logprobs=True, top_logprobs=2, stop=["ße"], seed=1, user="u"
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Grü", "stop")
    assert [entry.bytes for entry in choice.logprobs.content][:2] == [[ord("G")], [ord("r")]]
    assert len(choice.logprobs.content[0].top_logprobs) == 2


def test_completions_of_several_prompts(client):
    """Red when the older API does not parse."""
    answer = client.completions.create(model="tiny", prompt=["a", "b"], logprobs=1, echo=True, max_tokens=3)
    assert [choice.text[0] for choice in answer.choices] == ["a", "b"]
    assert len(answer.choices[0].logprobs.tokens) == 4
    pieces = list(client.completions.create(model="tiny", prompt="a", stream=True, max_tokens=50))
    assert "".join(piece.choices[0].text for piece in pieces) == TEXTS[0]


def test_errors_are_the_clients_own_types(running, client):
    """Red when a status or body is not what the client expects."""
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HI, temperature=-1)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HI)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=running.url, api_key="wrong", max_retries=0).models.list()


def test_closing_a_stream_frees_the_request_in_the_engine(running, client):
    """Red when uvicorn's disconnect does not reach the engine."""
    before = len(running.engine.commands)
    with client.completions.create(model="tiny", prompt="a", stream=True, max_tokens=50) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 2
    while not any(isinstance(command, wire.Abort) for command in running.engine.commands[before:]):
        assert time.monotonic() < deadline, "no abort within two seconds"
        time.sleep(0.005)


def test_death_of_the_engine_ends_a_stream_with_an_error_and_the_server_stays(running, client):
    """Red when a client waits forever for an engine that is gone."""
    stream = client.completions.create(model="tiny", prompt="a", stream=True, max_tokens=50)
    next(stream)
    running.call(running.engine.fail_all, EngineDead("the engine process exited"))
    with pytest.raises(openai.APIError, match="exited"):
        list(stream)
    with pytest.raises(openai.InternalServerError, match="exited"):
        client.completions.create(model="tiny", prompt="a")
    running.call(running.engine.route, READY)
    assert client.completions.create(model="tiny", prompt="a", max_tokens=2).usage.completion_tokens == 2
