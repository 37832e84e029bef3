"""Two real servers: one computes prompts, the other continues them."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.launch.conftest import ServerProcess

PROMPT = "The quick brown fox jumps over the lazy dog, and then it " * 12 + "sleeps. What did the fox do?"


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as response:
        return dict(json.load(response))


def complete(server: ServerProcess, prompt: str, *, kv_from: str | None = None, max_tokens: int = 16) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    headers = {"content-type": "application/json"} | ({"x-phloem-kv-from": kv_from} if kv_from else {})
    request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(json.load(response))


def num_cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


Start = Callable[..., "ServerProcess"]


@pytest.fixture
def start(start_server: Start) -> Iterator[Start]:
    """Servers that are closed at the end."""
    started: list[ServerProcess] = []

    def start_one(*arguments: str) -> ServerProcess:
        started.append(start_server(*arguments))
        return started[-1]

    yield start_one
    for server in started:
        server.close()


def test_the_header_pairs_two_servers(start: Start) -> None:
    """Red if the header does not reach the engine, a role is not told, or pages do not arrive."""
    prefill, decode = start("--role", "prefill"), start("--role", "decode")
    offer = get(f"{prefill.url}/transfer")
    assert offer["role"] == "prefill"
    assert offer["fingerprint"] == get(f"{decode.url}/transfer")["fingerprint"]
    answer = complete(decode, PROMPT, kv_from=offer["address"])
    assert num_cached(answer) == (len(PROMPT) - 1) // 32 * 32  # a byte is a token
    assert answer["choices"][0]["text"]
    for bad, where in (("nonsense", decode), (offer["address"], prefill)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            complete(where, PROMPT, kv_from=bad)
        assert caught.value.code == 400
    decode.stop()
    prefill.stop()
    assert not [line for line in decode.errors + prefill.errors if "Traceback" in line]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_prefill_server_that_dies_or_hangs_costs_no_request(start: Start, number: signal.Signals) -> None:
    """Red if a request fails or hangs because the server that computes its prompt does."""
    prefill, decode = start("--role", "prefill"), start("--role", "decode")
    address = get(f"{prefill.url}/transfer")["address"]
    answers: list[dict[str, Any]] = []

    def ask(index: int) -> None:
        answers.append(complete(decode, f"{index} {PROMPT * 4}", kv_from=address, max_tokens=4))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    engine = prefill.engine_pid
    for thread in threads[:4]:
        thread.start()
    os.kill(engine, number)
    for thread in threads[4:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    if number is signal.SIGSTOP:
        os.kill(engine, signal.SIGCONT)
    assert [len(answer["choices"][0]["text"]) > 0 for answer in answers] == [True] * 8


def test_a_role_needs_a_cache(start: Start) -> None:
    """Red if a server starts in a role it cannot play."""
    server = start("--role", "decode", "--no-prefix-cache")
    assert server.process.wait(20) == 2
    assert "--no-prefix-cache" in "".join(server.errors)


def test_the_default_model_says_the_same(default_model: object, start: Start) -> None:
    """Red if pages of a real model are cut, ordered or placed wrongly: greedy tokens in float32 are those of one
    server, and the decode side's cache works on."""
    options = ("--model", "default", "--dtype", "float32", "--max-model-len", "1024", "--memory-gb", "0.5",
               "--max-step-tokens", "64", "--threads", "1")  # fmt: skip
    prefill, decode = start("--role", "prefill", *options), start("--role", "decode", *options)
    address = get(f"{prefill.url}/transfer")["address"]
    handed = complete(decode, PROMPT, kv_from=address, max_tokens=24)
    assert num_cached(handed) >= 128
    alone = complete(prefill, PROMPT, max_tokens=24)
    assert handed["choices"][0]["text"] == alone["choices"][0]["text"]
    longer = complete(decode, PROMPT + handed["choices"][0]["text"] + " And then", max_tokens=4)
    assert num_cached(longer) >= num_cached(handed)
