"""Load on a running server: N requests at a rate, streamed; time to first token, time per token, throughput.

`python -m bench serve --url http://127.0.0.1:8000 --requests 64 --rate 4 --concurrency 32`. Any OpenAI-compatible
server will do. The client is one thread of asyncio with HTTP by hand: on two cores a heavier one would be measured too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from bench import machine, rows
from bench.workloads import HIGH_ID, LOW_ID

PERCENTILES = (50, 90, 99)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One request: when its chunks of text came, in seconds since it was sent, and how many tokens they were."""

    arrivals_s: tuple[float, ...]
    num_tokens: int
    total_s: float

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.arrivals_s[0]

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first."""
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / max(1, self.num_tokens - 1)


class RequestError(Exception):
    """The server refused or broke a request."""


class Client:
    """Streams completions from one server, a connection a request."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")

    async def model(self) -> str:
        """Name of the first model served."""
        lines = [line async for line in self._lines("GET", "/v1/models", None)]
        name: str = json.loads("".join(lines))["data"][0]["id"]
        return name

    async def complete(self, body: dict[str, Any]) -> Sample:
        """One streamed completion. Raises RequestError on any answer but a complete stream."""
        started_s, arrivals, num_tokens, is_done = time.perf_counter(), [], 0, False
        async for line in self._lines("POST", "/v1/completions", body):
            if not line.startswith("data:"):
                continue
            payload = line.removeprefix("data:").strip()
            if payload == "[DONE]":
                is_done = True
                break
            event = json.loads(payload)
            if "error" in event:
                raise RequestError(str(event["error"]))
            if event.get("choices"):
                arrivals.append(time.perf_counter() - started_s)
            if usage := event.get("usage"):
                num_tokens = usage["completion_tokens"]
        if not is_done or not arrivals:
            raise RequestError("the stream ended early")
        total_s = time.perf_counter() - started_s
        return Sample(arrivals_s=tuple(arrivals), num_tokens=num_tokens or len(arrivals), total_s=total_s)

    async def _lines(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[str]:
        """Lines of the answer's body, chunked or not."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 24)
        try:
            content = json.dumps(body).encode() if body is not None else b""
            head = (
                f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            )
            writer.write(head.encode() + content)
            await writer.drain()
            status = int((await reader.readline()).split()[1])
            is_chunked = False
            while (header := (await reader.readline()).decode().strip().lower()) != "":
                is_chunked |= header.startswith("transfer-encoding:") and "chunked" in header
            if status != 200:
                raise RequestError(f"status {status}: {(await reader.read()).decode(errors='replace')[:300]}")
            rest = b""
            async for data in _chunks(reader) if is_chunked else _whole(reader):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line.decode().rstrip("\r")
            if rest:
                yield rest.decode()
        finally:
            writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0], 16):
        data = await reader.readexactly(size + 2)
        yield data[:-2]


async def _whole(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    yield await reader.read()


async def load(options: argparse.Namespace) -> tuple[list[Sample], list[str], float]:
    """Send every request at its time (Poisson), at most `concurrency` open. Returns samples, errors, seconds in all."""
    client, randomness = Client(options.url), random.Random(options.seed)
    model = options.model or await client.model()
    gate, errors = asyncio.Semaphore(options.concurrency), list[str]()
    started_s, due_s = time.perf_counter(), 0.0

    async def one(at_s: float, prompt: list[int]) -> Sample | None:
        await asyncio.sleep(max(0.0, started_s + at_s - time.perf_counter()))
        body = {"model": model, "prompt": prompt, "max_tokens": options.output_len, "temperature": 0, "stream": True}
        body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
        async with gate:
            try:
                return await client.complete(body)
            except (RequestError, OSError, ValueError, asyncio.IncompleteReadError) as error:
                errors.append(f"{type(error).__name__}: {error}")
                return None

    tasks = []
    for _ in range(options.requests):
        prompt = [randomness.randrange(LOW_ID, HIGH_ID) for _ in range(options.input_len)]
        tasks.append(asyncio.create_task(one(due_s, prompt)))
        due_s += randomness.expovariate(options.rate) if options.rate else 0.0
    samples = [sample for sample in await asyncio.gather(*tasks) if sample is not None]
    return samples, errors, time.perf_counter() - started_s


def metrics(samples: Sequence[Sample], elapsed_s: float) -> list[tuple[str, float, str]]:
    """(metric, value, unit) of a run, percentiles by nearest rank."""
    found = [
        ("output", sum(sample.num_tokens for sample in samples) / elapsed_s, "tok/s"),
        ("requests", len(samples) / elapsed_s, "req/s"),
    ]
    for name, values in (
        ("ttft", sorted(sample.ttft_s for sample in samples)),
        ("tpot", sorted(sample.tpot_s for sample in samples)),
        ("e2e", sorted(sample.total_s for sample in samples)),
    ):
        for percent in PERCENTILES:
            rank = max(0, -(-percent * len(values) // 100) - 1)
            found.append((f"{name}_p{percent}", values[rank] * 1000, "ms"))
    return found


def main(arguments: Sequence[str]) -> int:
    """Put load on a server and print what it did; 1 when any request failed."""
    options = _parse(arguments)
    samples, errors, elapsed_s = asyncio.run(load(options))
    for error in list(dict.fromkeys(errors))[:5]:
        print(f"bench serve: {error}", file=sys.stderr)
    print(f"{len(samples)} requests answered, {len(errors)} failed, {elapsed_s:.2f} s")
    if samples:
        found = metrics(samples, elapsed_s)
        for name, value, unit in found:
            print(f"  {name:10s} {value:10.2f} {unit}")
        if options.write:
            _write(found, arguments)
    return 1 if errors or not samples else 0


def _write(found: Sequence[tuple[str, float, str]], arguments: Sequence[str]) -> None:
    series = [
        rows.Series(workload="serve", metric=name, unit=unit, engine="phloem", values=(value,))
        for name, value, unit in found
    ]
    context = rows.Context(
        machine=machine.measure(2).describe(),
        command=shlex.join(["python", "-m", "bench", "serve", *arguments]),
        versions={},
        date=rows.now(),
        commit=rows.current_commit(),
    )
    path = rows.write(rows.make_rows(series, [], floors={}, context=context), series, workload="serve")
    print(f"bench serve: wrote {path.relative_to(rows.ROOT)}", file=sys.stderr)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench serve", description="Load on a running server.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="base of the server (default %(default)s)")
    parser.add_argument("--model", help="name in the API; default: the first one served")
    parser.add_argument("--requests", type=int, default=64, help="how many in all (default %(default)s)")
    parser.add_argument("--rate", type=float, default=0.0, help="arrivals a second, Poisson; 0 (default): all at once")
    parser.add_argument("--concurrency", type=int, default=32, help="open at once at most (default %(default)s)")
    parser.add_argument("--input-len", type=int, default=128, help="prompt tokens (default %(default)s)")
    parser.add_argument("--output-len", type=int, default=64, help="tokens generated (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    parser.add_argument("--write", action="store_true", help="write bench/results/<date>-serve.json")
    return parser.parse_args(arguments)
