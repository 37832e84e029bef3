"""The default model behind a real server: the whole way from the openai client to the kernels and back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from tests.launch.conftest import ServerProcess

NAME = "SmolLM2-135M-Instruct"
QUESTIONS = [f"The capital of {country} is" for country in ("France", "Italy", "Japan", "Spain", "Peru", "Egypt")]


@pytest.fixture(scope="module")
def real_server(default_model: Path, start_server: type[ServerProcess]) -> Iterator[ServerProcess]:
    started = start_server("--model", str(default_model), "--served-model-name", NAME, "--memory-gb", "1")
    yield started
    started.close()


def test_every_stage_of_the_start_is_told(real_server: ServerProcess) -> None:
    """Red when a stage, or the arithmetic of the KV cache, is no longer printed."""
    output = "".join(real_server.output)
    for stage in (
        "import torch",
        "open checkpoint",
        "build graph",
        "load weights",
        "KV pool",
        "capture",
        "--memory-gb",
    ):
        assert stage in output


def test_it_knows_the_capital_of_japan(real_server: ServerProcess) -> None:
    """Red when weights, tokenizer, template and sampling do not fit together."""
    answer = real_server.client().chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "What is the capital of Japan?"}],
        max_tokens=32,
        temperature=0,
    )
    assert "Tokyo" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_alone_together_and_streamed_are_the_same(real_server: ServerProcess) -> None:
    """Red when an answer depends on what else is in the batch, on the cache, or on how it is delivered."""
    client = real_server.client()

    def ask(prompt: str) -> str:
        return client.completions.create(model=NAME, prompt=prompt, max_tokens=24, temperature=0).choices[0].text

    def stream(prompt: str) -> str:
        chunks = client.completions.create(model=NAME, prompt=prompt, max_tokens=24, temperature=0, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks)

    alone = [ask(prompt) for prompt in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS) * 2) as threads:
        together = threads.map(ask, QUESTIONS)
        streamed = threads.map(stream, QUESTIONS)
    assert list(together) == alone
    assert list(streamed) == alone


def test_killing_the_engine_under_load(default_model: Path, start_server: type[ServerProcess]) -> None:
    """Red when an engine that dies inside a kernel leaves a client waiting."""
    server = start_server("--model", str(default_model), "--served-model-name", NAME, "--memory-gb", "1")
    try:
        _kill_under_load(server)
    finally:
        server.close()


def _kill_under_load(server: ServerProcess) -> None:
    client = server.client()
    ends: list[float] = []
    started = threading.Barrier(9)

    def run(index: int) -> None:
        stream = client.completions.create(
            model=NAME, prompt=f"{index}: " * 50, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        started.wait(30)
        with pytest.raises((openai.OpenAIError, OSError)):
            list(stream)
        ends.append(time.monotonic())

    with ThreadPoolExecutor(8) as threads:
        runs = [threads.submit(run, index) for index in range(8)]
        started.wait(30)
        killed_s = time.monotonic()
        os.kill(server.engine_pid, signal.SIGKILL)
        for each in runs:
            each.result(10)
    assert max(ends) - killed_s < 2
    assert server.process.wait(15) == 70
