"""`python -m bench router`: four small replicas behind the router, one policy after the other on the same requests.

The replicas are whole (HTTP, scheduler, ledger) but for the model: a worker without one, whose steps take as long as
the tokens that they compute. So what a policy saves in computed tokens is what it saves in time. Workloads:

    shared    many groups of requests with a prefix in common, in random order; a replica can cache a quarter
    mooncake  a recorded trace with its prefix sharing, a block of 512 tokens shrunk to a page of 16
    azure     a recorded trace of lengths, a sixteenth of each: nothing is shared

`optimum` knows everything: each prompt's prefix is computed once in all and never evicted, and the replicas are busy
to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import itertools
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import rows
from bench.rows import Context, Series
from phloem.serve.router.upstream import Address, Pool

NUM_REPLICAS, PAGE_SIZE, VOCABULARY = 4, 16, 250
STEP_S, TOKEN_S = 0.004, 0.0002
MAX_TOKENS, CONCURRENCY = 8, 32
POLICIES = ("cache-aware", "least-tokens", "round-robin")
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


class Work(NamedTuple):
    """Prompts in the order they are asked, and the pages of one replica."""

    prompts: Sequence[Sequence[int]]
    num_pages: int


class Result(NamedTuple):
    """What one policy did with one workload."""

    hit_rate: float
    tokens_per_s: float


def shared() -> Work:
    """160 groups of 5 requests: 1,024 tokens in common, 64 of one's own."""
    draw = random.Random(6)
    prefixes = [_tokens(draw, 1024) for _ in range(160)]
    prompts = [[*prefix, *_tokens(draw, 64)] for prefix in prefixes for _ in range(5)]
    draw.shuffle(prompts)
    return Work(prompts, num_pages=2700)


def mooncake(count: int = 800) -> Work:
    """The first requests of the conversation trace, those of up to 120 blocks."""
    with gzip.open(DATA / "mooncake_conversation_first_half.jsonl.gz", "rt") as lines:
        traced = [json.loads(line)["hash_ids"] for line in itertools.islice(lines, count)]
    block = {number: _tokens(random.Random(number), PAGE_SIZE) for ids in traced for number in ids}
    prompts = [[token for number in ids[:120] for token in block[number]] for ids in traced]
    return Work(prompts, num_pages=1600)


def azure(count: int = 400) -> Work:
    """The first requests of the coding trace."""
    draw = random.Random(6)
    with open(DATA / "azure_code.csv") as lines:
        lengths = [int(line["ContextTokens"]) for line in itertools.islice(csv.DictReader(lines), count)]
    return Work([_tokens(draw, max(16, length // 16)) for length in lengths], num_pages=1600)


WORKLOADS = {"shared": shared, "mooncake": mooncake, "azure": azure}


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(VOCABULARY) for _ in range(count)]


def optimum(work: Work) -> Result:
    """Every page computed once, the replicas never idle, decoding free but for one step a token."""
    seen: set[tuple[int, ...]] = set()
    num_computed = 0
    for prompt in work.prompts:
        num_cached = 0
        for end in range(PAGE_SIZE, len(prompt) + 1, PAGE_SIZE):
            prefix = tuple(prompt[:end])
            num_cached += PAGE_SIZE if prefix in seen else 0
            seen.add(prefix)
        num_computed += len(prompt) - min(num_cached, len(prompt) - 1)
    num_prompt = sum(map(len, work.prompts))
    return Result(1 - num_computed / num_prompt, num_prompt / (num_computed * TOKEN_S / NUM_REPLICAS))


def measure(work: Work, policy: str) -> Result:
    """Start everything anew, ask everything, `CONCURRENCY` requests at a time."""
    with ExitStack() as stack:
        replicas = [stack.enter_context(_replica(work.num_pages)) for _ in range(NUM_REPLICAS)]
        router = stack.enter_context(_router(replicas, policy))
        return asyncio.run(_ask_all(router, work.prompts))


async def _ask_all(url: str, prompts: Sequence[Sequence[int]]) -> Result:
    pool, queue = Pool(Address(url)), iter(prompts)
    await _until_ready(pool)
    num_cached = 0

    async def ask() -> None:
        nonlocal num_cached
        for prompt in queue:
            body = json.dumps({"prompt": prompt, "max_tokens": MAX_TOKENS, "ignore_eos": True}).encode()
            head = [(b"content-type", b"application/json")]
            connection = await pool.request("POST", b"/v1/completions", head, body)
            answer = json.loads(await connection.body())
            pool.release(connection)
            assert connection.status == 200, answer
            num_cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    started_s = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(CONCURRENCY)))
    num_prompt = sum(map(len, prompts))
    return Result(num_cached / num_prompt, num_prompt / (time.monotonic() - started_s))


async def _until_ready(pool: Pool) -> None:
    while True:
        connection = await pool.request("GET", b"/replicas")
        known = json.loads(await connection.body())["replicas"]
        pool.release(connection)
        if sum(one["state"] == "ready" and one["is_followed"] for one in known) == NUM_REPLICAS:
            return
        await asyncio.sleep(0.1)


@contextmanager
def _replica(num_pages: int) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "bench.router_replica", str(listener.fileno()), str(num_pages)]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with _ended(process):
        yield url


@contextmanager
def _router(replicas: Sequence[str], policy: str) -> Iterator[str]:
    named = [argument for url in replicas for argument in ("--replica", url)]
    command = [sys.executable, "-m", "phloem", "router", "--port", "0", "--policy", policy, *named]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with _ended(process):
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http" in line and line.startswith("on "))
        yield line.split()[1].rstrip(";")


@contextmanager
def _ended(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main(arguments: Sequence[str]) -> int:
    """Measure the workloads named, or all; print and record."""
    parser = argparse.ArgumentParser(prog="python -m bench router", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)} (default all)")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    series: list[Series] = []
    for name in options.workloads or WORKLOADS:
        work = WORKLOADS[name]()
        found = {policy: [measure(work, policy) for _ in range(options.repetitions)] for policy in POLICIES}
        found["optimum"] = [optimum(work)]
        for policy, results in found.items():
            for metric, unit in (("hit_rate", "share"), ("tokens_per_s", "prompt tokens/s")):
                values = tuple(float(result._asdict()[metric]) for result in results)
                series.append(Series(workload=f"router-{name}", metric=metric, unit=unit, engine=policy, values=values))
    print(rows.table(series, ours="cache-aware", floors={}))
    if not options.no_record:
        _record(series, arguments)
    return 0


def _record(series: Sequence[Series], arguments: Sequence[str]) -> None:
    context = Context(
        machine=f"{os.cpu_count()} cores, shared with other work",
        command="python -m bench router " + shlex.join(arguments),
        versions={"python": sys.version.split()[0]},
        date=rows.now(),
        commit=rows.current_commit(),
    )
    ours = [one for one in series if one.engine == "cache-aware"]
    made = rows.make_rows(ours, [one for one in series if one not in ours], floors={}, context=context)
    print(rows.write(made, series, workload="router"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
