"""A real server process: start, answer, drain, die well. The engine has the null worker."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from tests.launch.conftest import ServerProcess

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")

FOREVER = {"ignore_eos": True}  # end tokens do not end it
LONG = 3000  # tokens: far more than the null worker makes in the time of a test


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def wait_until_gone(pid: int, timeout_s: float) -> bool:
    """Whether the process `pid` has ended within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as stat:
            if ") Z " in stat.read():
                return True
        time.sleep(0.02)
    return False


class OpenStreams:
    """Streaming requests that run until something ends them; when and how each ended."""

    def __init__(self, server: ServerProcess, *, count: int, max_tokens: int = LONG) -> None:
        self.ends: list[tuple[float, BaseException | None]] = []
        self._client = server.client()
        self._max_tokens = max_tokens
        self._has_text = [threading.Event() for _ in range(count)]
        self._threads = [threading.Thread(target=self._run, args=(event,), daemon=True) for event in self._has_text]
        for thread in self._threads:
            thread.start()

    def wait_for_text(self) -> None:
        assert all(event.wait(20) for event in self._has_text)

    def join(self, timeout_s: float) -> None:
        for thread in self._threads:
            thread.join(timeout_s)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"

    def _run(self, has_text: threading.Event) -> None:
        error: BaseException | None = None
        try:
            stream = self._client.completions.create(
                model="dummy:null",
                prompt="x",
                max_tokens=self._max_tokens,
                stream=True,
                extra_body=FOREVER,
            )
            for _ in stream:
                has_text.set()
        except (openai.OpenAIError, OSError) as caught:
            error = caught
        self.ends.append((time.monotonic(), error))


def test_it_says_what_it_did_and_how_to_ask(shared_server: ServerProcess) -> None:
    """Red when a stage, the memory arithmetic or the curl line disappears from the output, or the curl line fails."""
    output = "".join(shared_server.output)
    for stage in ("find model", "load tokenizer", "import http", "KV cache", "serving dummy:null"):
        assert stage in output
    [curl] = [line.strip() for line in shared_server.output if line.strip().startswith("curl")]
    done = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=20, check=True)
    assert '"choices"' in done.stdout


def test_it_starts_quickly(shared_server: ServerProcess) -> None:
    """Red when the server's half of the start does slow things; 0.7 s on an idle two-core machine."""
    assert shared_server.seconds_to_ready < 5


def test_the_openai_client_completes(shared_server: ServerProcess) -> None:
    """Red when the plain path from HTTP to worker and back breaks."""
    client = shared_server.client()
    assert [model.id for model in client.models.list()] == ["dummy:null"]
    answer = client.completions.create(model="dummy:null", prompt="Hello", max_tokens=7, extra_body=FOREVER)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.prompt_tokens == 5  # a byte is a token


def test_the_openai_client_streams_a_chat(shared_server: ServerProcess) -> None:
    """Red when streaming loses its end or its usage."""
    stream = shared_server.client().chat.completions.create(
        model="dummy:null",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=FOREVER,
    )
    chunks = list(stream)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9


def test_sigterm_lets_open_requests_finish(server: ServerProcess) -> None:
    """Red when a signal cuts off an answer, new requests are still taken while draining, or the exit code is not 0."""
    engine = server.engine_pid
    streams = OpenStreams(server, count=4, max_tokens=800)
    streams.wait_for_text()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    streams.join(5)
    assert [error for _, error in streams.ends] == [None] * 4
    said = [line for line in server.errors if "phloem.access" not in line]
    assert said == ["phloem: stopping; a second signal stops at once\n"]
    assert wait_until_gone(engine, 2)


def test_a_second_signal_does_not_wait(server: ServerProcess) -> None:
    """Red when an impatient user has to wait for the drain."""
    os.kill(server.engine_pid, signal.SIGSTOP)  # an engine that answers nothing
    streams = OpenStreams(server, count=1)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    started_s = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(15) == 0
    assert time.monotonic() - started_s < 9
    streams.join(5)


def test_the_death_of_the_engine_is_answered(server: ServerProcess) -> None:
    """Red when kill -9 of the engine leaves a request hanging for 2 s, /health at 200, or the server alive."""
    streams = OpenStreams(server, count=8)
    streams.wait_for_text()
    killed_s = time.monotonic()
    os.kill(server.engine_pid, signal.SIGKILL)
    streams.join(5)
    assert all(error is not None and ended_s - killed_s < 2 for ended_s, error in streams.ends)
    assert status_of(f"{server.url}/health") == 503
    assert server.process.wait(15) == 70
    assert "the engine process ended: SIGKILL" in "".join(server.errors)


def test_the_engine_dies_with_its_server(server: ServerProcess) -> None:
    """Red when kill -9 of the server leaves an orphan behind."""
    engine = server.engine_pid
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(5)
    assert wait_until_gone(engine, 3)
