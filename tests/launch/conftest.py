"""A real `phloem serve` process on the null worker, for tests that talk to it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

START_TIMEOUT_S = 30


class ServerProcess:
    """`phloem serve` as a user starts it, and what it prints."""

    def __init__(self, *arguments: str) -> None:
        started_s = time.monotonic()
        model = () if "--model" in arguments else ("--model", "dummy:null")
        command = [sys.executable, "-m", "phloem", "serve", "--port", "0", *model, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.output: list[str] = []
        self.errors: list[str] = []
        self._is_ready = threading.Event()
        for stream, lines in ((self.process.stdout, self.output), (self.process.stderr, self.errors)):
            threading.Thread(target=self._read, args=(stream, lines), daemon=True).start()
        if not self._is_ready.wait(START_TIMEOUT_S):
            self.process.kill()
            raise AssertionError("".join(self.output + self.errors))
        self.seconds_to_ready = time.monotonic() - started_s

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line)
            if "curl" in line:
                self._is_ready.set()
        self._is_ready.set()  # the end of the output: there is nothing to wait for

    @property
    def url(self) -> str:
        match = re.search(r"http://\S+?:\d+", "".join(self.output))
        assert match is not None, self.errors
        return match.group()

    @property
    def engine_pid(self) -> int:
        """The one child process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1
        return int(children[0])

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=20)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def start_server() -> type[ServerProcess]:
    """To start a server with options of one's own; whoever starts it closes it."""
    return ServerProcess


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """A server of its own for a test that ends it."""
    started = ServerProcess()
    yield started
    started.close()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ServerProcess]:
    """One server for tests that only ask it something."""
    started = ServerProcess()
    yield started
    started.close()
