"""The router in front of real replicas: null-worker servers that are killed, stopped and drained under load."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")]

PROMPT = "All replicas know this sentence by heart. " * 20


class Process:
    """A command of phloem's, and what it printed until `ready` was in a line."""

    def __init__(self, *arguments: str, ready: str) -> None:
        command = [sys.executable, "-m", "phloem", *arguments, "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.errors: list[str] = []
        threading.Thread(target=lambda: self.errors.extend(self.process.stderr or ()), daemon=True).start()
        assert self.process.stdout is not None
        started_s, text = time.monotonic(), ""
        for line in self.process.stdout:
            text += line
            if ready in line:
                break
        self.seconds_to_ready = time.monotonic() - started_s
        urls = re.findall(r"on (http://\S+?:\d+)", text)
        assert urls, (text, self.errors)
        self.url = urls[-1]
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()


def replica(*arguments: str) -> Process:
    return Process("serve", "--model", "dummy:null", *arguments, ready="curl")


@contextmanager
def routed(replicas: list[Process], *arguments: str) -> Iterator[Process]:
    named = [word for one in replicas for word in ("--replica", one.url)]
    router = Process("router", *named, *arguments, ready="curl")
    try:
        yield router
    finally:
        router.close()


@pytest.fixture
def replicas() -> Iterator[list[Process]]:
    started = [replica() for _ in range(3)]
    yield started
    for one in started:
        one.close()


def body(*, stream: bool = False, max_tokens: int = 4, prompt: str = PROMPT, **more: object) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": max_tokens, "stream": stream, "ignore_eos": True, **more}


def wait_for(condition, timeout_s: float = 10) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it does not come true"
        time.sleep(0.05)


def states(router: Process) -> list[str]:
    return [one["state"] for one in httpx.get(f"{router.url}/replicas").json()["replicas"]]


async def under_load(url: str, *, count: int, stream: bool, max_tokens: int, during) -> list[tuple[str, str]]:
    """(end, text) of `count` requests sent at once; `during` runs when all are on their way."""

    async def ask(client: httpx.AsyncClient, index: int) -> tuple[str, str]:
        request = body(stream=stream, max_tokens=max_tokens, prompt=f"{index}: {PROMPT}")
        if not stream:
            answer = await client.post("/v1/completions", json=request)
            return str(answer.status_code), answer.text
        async with client.stream("POST", "/v1/completions", json=request) as answer:
            return str(answer.status_code), (await answer.aread()).decode()

    async with httpx.AsyncClient(base_url=url, timeout=40, limits=httpx.Limits(max_connections=count)) as client:
        asking = [asyncio.ensure_future(ask(client, index)) for index in range(count)]
        await asyncio.sleep(0.7)
        await asyncio.to_thread(during)
        return await asyncio.gather(*asking)


def test_a_prefix_is_found_again_and_a_stream_passes_unchanged(replicas: list[Process]) -> None:
    """Red when the router does not follow the caches, names pages in another way than they do, or touches a stream."""
    with routed(replicas, "--model", "dummy:null") as router:
        assert router.seconds_to_ready < 5  # 0.6 s on an idle machine
        first = httpx.post(f"{router.url}/v1/completions", json=body())
        wait_for(
            lambda: sum(one["cached_pages"] for one in httpx.get(f"{router.url}/replicas").json()["replicas"]) > 20
        )
        for _ in range(4):
            again = httpx.post(f"{router.url}/v1/completions", json=body())
            assert again.headers["x-phloem-replica"] == first.headers["x-phloem-replica"]
            assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT) - 1
        salted = httpx.post(f"{router.url}/v1/completions", json=body(cache_salt="other")).json()
        assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        text = httpx.post(f"{router.url}/v1/completions", json=body(stream=True)).text
        assert text.endswith("data: [DONE]\n\n")
        assert len([json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]) == 4
        metrics = httpx.get(f"{router.url}/metrics").text
        assert 'phloem:router_requests_total{outcome="answered"} 7.0' in metrics


def test_kill_9_under_load_unstreamed_requests_succeed_elsewhere(replicas: list[Process]) -> None:
    """Red when a request that nobody has seen a byte of fails with its replica, or is answered twice."""
    with routed(replicas, "--policy", "round-robin") as router:
        ends = asyncio.run(under_load(router.url, count=18, stream=False, max_tokens=900, during=replicas[0].kill))
        assert [status for status, _ in ends] == ["200"] * 18
        assert all(json.loads(text)["usage"]["completion_tokens"] == 900 for _, text in ends)
        metrics = httpx.get(f"{router.url}/metrics").text
        retries = re.findall(r"router_retries_total\{.*\} (\S+)", metrics)
        assert sum(map(float, retries)) == 6, "the killed replica had a third of them"
        wait_for(lambda: sorted(states(router)) == ["lost", "ready", "ready"])


def test_kill_9_under_load_streams_end_with_a_typed_error(replicas: list[Process]) -> None:
    """Red when a stream that has begun hangs, ends as if it were complete, or begins again."""
    with routed(replicas, "--policy", "round-robin") as router:
        ends = asyncio.run(under_load(router.url, count=18, stream=True, max_tokens=900, during=replicas[0].kill))
        assert [status for status, _ in ends] == ["200"] * 18
        whole = [text for _, text in ends if text.endswith("data: [DONE]\n\n")]
        cut = [text for _, text in ends if not text.endswith("data: [DONE]\n\n")]
        assert (len(whole), len(cut)) == (12, 6)
        for text in whole:
            assert len(re.findall(r'"finish_reason":"length"', text)) == 1
        for text in cut:
            events = [json.loads(line[6:]) for line in text.splitlines() if line]
            assert events[-1]["error"]["code"] == "engine_dead"
            assert len({event["id"] for event in events[:-1]}) == 1


def test_a_hanging_replica_is_noticed(replicas: list[Process]) -> None:
    """Red when a replica that is stopped keeps its requests for ever."""
    with routed(replicas, "--policy", "round-robin") as router:
        stop = lambda: replicas[0].process.send_signal(signal.SIGSTOP)  # noqa: E731
        ends = asyncio.run(under_load(router.url, count=6, stream=False, max_tokens=900, during=stop))
        assert [status for status, _ in ends] == ["200"] * 6


def test_replicas_come_and_go_while_it_runs(replicas: list[Process]) -> None:
    """Red when adding or draining needs a restart, or a drained replica's requests are cut off."""
    with routed(replicas[:1]) as router:
        assert httpx.post(f"{router.url}/replicas", json={"url": replicas[1].url}).status_code == 201
        assert httpx.post(f"{router.url}/replicas", json={"url": replicas[1].url}).status_code == 400
        wait_for(lambda: states(router) == ["ready", "ready"])
        drain = lambda: httpx.request("DELETE", f"{router.url}/replicas", json={"url": replicas[0].url}, timeout=30)  # noqa: E731
        ends = asyncio.run(under_load(router.url, count=8, stream=True, max_tokens=900, during=drain))
        assert all(text.endswith("data: [DONE]\n\n") for _, text in ends)
        assert states(router) == ["ready"]


def test_a_replica_with_another_model_is_refused(replicas: list[Process]) -> None:
    """Red when answers could come from two models."""
    other = replica("--served-model-name", "other")
    try:
        with routed(replicas[:1]) as router:
            refused = httpx.post(f"{router.url}/replicas", json={"url": other.url})
            assert refused.status_code == 400
            assert "'other'" in refused.json()["error"]["message"]
            assert states(router) == ["ready"]
        command = [sys.executable, "-m", "phloem", "router", "--replica", replicas[0].url, "--replica", other.url]
        done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=30)
        assert done.returncode == 2
        assert "is refused" in done.stderr
    finally:
        other.close()


def test_prefill_and_decode_replicas_are_paired() -> None:
    """Red when the router does not name the prefill replica, no page comes from it, or its death costs a request."""
    prefill, decode = replica("--role", "prefill"), replica("--role", "decode")
    try:
        with routed([prefill, decode]) as router:
            roles = {one["url"]: one["role"] for one in httpx.get(f"{router.url}/replicas").json()["replicas"]}
            assert roles == {prefill.url: "prefill", decode.url: "decode"}

            def num_cached(prompt: str) -> int:
                answer = httpx.post(f"{router.url}/v1/completions", json=body(prompt=prompt), timeout=30)
                assert (answer.status_code, answer.headers["x-phloem-replica"]) == (200, decode.url)
                return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

            assert num_cached(PROMPT) == (len(PROMPT) - 1) // 32 * 32, "an empty cache: all of it came from elsewhere"
            handed_over = f'phloem:router_prompts_handed_over_total{{replica="{prefill.url}"}}'
            assert f"{handed_over} 1.0\n" in httpx.get(f"{router.url}/metrics").text
            prefill.kill()
            num_cached("at once: " + PROMPT)  # named or not, and its engine may live a moment longer
            wait_for(lambda: sorted(states(router)) == ["lost", "ready"])
            assert num_cached("later: " + PROMPT) == 0
            assert f"{handed_over} 3.0\n" not in httpx.get(f"{router.url}/metrics").text
    finally:
        decode.close()
        prefill.close()


def test_bad_options_are_named() -> None:
    """Red when a port that is taken, a bad address or an unknown policy is a traceback."""

    def errors_of(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "phloem", "router", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = errors_of("--port", str(taken.getsockname()[1]))
        assert (code, "is in use" in said) == (2, True)
    code, said = errors_of("--port", "0", "--replica", "ftp://nowhere")
    assert (code, "http://HOST:PORT" in said) == (2, True)
    code, said = errors_of("--port", "0", "--policy", "best")
    assert (code, "cache-aware" in said) == (2, True)


def test_nobody_there_is_an_answer() -> None:
    """Red when a router without replicas hangs, or does not say when it is ready."""
    with routed([], "--replica", "http://127.0.0.1:9") as router:
        answer = httpx.post(f"{router.url}/v1/completions", json=body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert httpx.get(f"{router.url}/ready").status_code == 503


def test_serve_dp_is_one_address_and_replaces_a_replica_that_died() -> None:
    """Red when --dp does not start what it says, a dead replica stays dead, or something stays behind."""
    server = Process("serve", "--model", "dummy:null", "--dp", "2", ready="curl")
    try:
        wait_for(lambda: states(server) == ["ready", "ready"], 20)
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        ends = asyncio.run(
            under_load(
                server.url,
                count=6,
                stream=False,
                max_tokens=400,
                during=lambda: os.kill(int(children[0]), signal.SIGKILL),
            )
        )
        assert [status for status, _ in ends] == ["200"] * 6
        wait_for(lambda: states(server) == ["ready", "ready"], 20)
        server.process.terminate()
        assert server.process.wait(20) == 0
        wait_for(lambda: not os.path.exists(f"/proc/{children[1]}"))
    finally:
        server.close()
