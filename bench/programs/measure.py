"""`python -m bench programs`: each task in four ways on one real server, then against the oracle in this process.

plain: the openai package, request after request; threads: the same, independent requests in threads; off: this
language over POST /v1/programs, every pass off; on: every pass on. Each run has a cache salt of its own: its prefixes
are cold. Tasks may be measured in several calls on one day: a call replaces its own rows in the result file.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import openai

from bench import machine, rows
from bench.programs import authored, plain, tasks
from bench.programs.oracle import Oracle
from phloem import LLM, RunOptions
from phloem.core import wire
from phloem.lang.ir import to_json
from phloem.launch.inprocess import InProcessRequests
from phloem.launch.programs import ProgramRunner

R = TypeVar("R")

WAYS = ("plain", "threads", "off", "on")
ENGINES = {
    "plain": "openai client",
    "threads": "openai client in threads",
    "off": "program, passes off",
    "on": "program",
}
ORACLE = "oracle: the least that any sharing computes"
METRICS = {"wall_s": ("wall time", "s"), "computed": ("prompt tokens computed", "tokens"), "steps": ("steps", "steps"),
           "generated": ("tokens generated", "tokens"), "requests": ("engine requests", "requests"),
           "round_trips": ("HTTP round trips", "requests")}  # fmt: skip
PAGE_SIZE = 32
SEED = 7
STATS_S = 0.3
"""The server's counters are that old at most."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write bench/results/<date>-programs.json."""
    parser = argparse.ArgumentParser(prog="python -m bench programs", description=__doc__)
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(tasks.ARGUMENTS)}; default: all")
    parser.add_argument("--model", default="default")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args(arguments)
    names = options.tasks or list(tasks.ARGUMENTS)
    measured: dict[str, dict[str, list[dict[str, Any]]]] = {name: {way: [] for way in WAYS} for name in names}
    with Server(options.model) as server:
        for repetition in range(-1, options.repetitions):  # the first warms up
            for name in names:
                for way in WAYS:
                    found = run(server, name, way, salt=f"{name}-{way}-{repetition}-{time.time()}")
                    if repetition >= 0:
                        measured[name][way].append(found)
    report = {name: {way: _median(runs) for way, runs in ways.items()} for name, ways in measured.items()}
    series = [one for name, ways in measured.items() for way, runs in ways.items() for one in _series(name, way, runs)]
    with LLM(options.model) as llm:
        for name in names:
            report[name]["sharing"] = found = sharing(llm, name)
            series += _shared(name, found)
    print(table(report))
    if not options.no_write:
        context = rows.Context(
            machine=machine.measure(2).describe(),
            command=shlex.join(["python", "-m", "bench", "programs", *arguments]),
            versions={"python": sys.version.split()[0], "openai": openai.__version__},
            date=rows.now(),
            commit=rows.current_commit(),
        )
        print(f"wrote {write(series, context=context)}", file=sys.stderr)
    return 0


def write(series: Sequence[rows.Series], *, context: rows.Context) -> Path:
    """Rows of these series beside those of other tasks that were measured on the same day."""
    ours, others = ([one for one in series if (one.engine == ENGINES["on"]) is mine] for mine in (True, False))
    path = rows.RESULTS / f"{context.date[:10]}-programs.json"
    workloads = {one.workload for one in series}
    kept_rows = [one for one in _read(path, list[rows.Row]) if one.workload not in workloads]
    kept_series = [one for one in _read(path.parent / "reps" / path.name, list[rows.Series])
                   if one.workload not in workloads]  # fmt: skip
    made = rows.make_rows(ours, others, floors={}, context=context)
    return rows.write([*kept_rows, *made], [*kept_series, *series], workload="programs")


def _read(path: Path, kind: type[list[R]]) -> list[R]:
    return msgspec.json.decode(path.read_bytes(), type=kind) if path.exists() else []


def _series(task: str, way: str, runs: list[dict[str, Any]]) -> list[rows.Series]:
    return [
        rows.Series(
            workload=f"programs/{task}",
            metric=metric,
            unit=unit,
            engine=ENGINES[way],
            values=tuple(float(run[key]) for run in runs),
        )
        for key, (metric, unit) in METRICS.items()
    ]


def _shared(task: str, found: dict[str, int]) -> list[rows.Series]:
    """Our prompt tokens computed in process beside the oracle's; a page a request more is allowed."""
    note = f"at most {found['allowed']} allowed"
    pairs = ((ENGINES["on"], found["computed"]), (ORACLE, found["least"]))
    return [
        rows.Series(workload=f"programs/{task}", metric="prompt tokens computed in process", unit="tokens",
                    engine=engine, values=(float(value),), note=note)
        for engine, value in pairs
    ]  # fmt: skip


class Server:
    """`phloem serve` on a free port."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "phloem", "serve", "--port", "0", "--model", model]
        command += ["--log-level", "warning"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = ""
        for line in self._process.stdout:
            if match := re.search(r"serving (\S+) on (http://\S+)", line):
                self.model, self.url = match.groups()
            if "curl" in line:
                break
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def num_steps(self) -> int:
        """Engine steps so far."""
        time.sleep(STATS_S)
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            found = re.search(r"^phloem:num_steps_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
        return int(float(found[1])) if found else 0

    def post(self, body: dict[str, Any]) -> Any:
        """POST /v1/programs."""
        request = urllib.request.Request(
            f"{self.url}/v1/programs", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def run(server: Server, name: str, way: str, *, salt: str) -> dict[str, Any]:
    """One run of one task in one way, on a cold prefix."""
    steps = server.num_steps()
    if way in ("plain", "threads"):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
            counting = plain.Plain(client, model=server.model, salt=salt, in_threads=way == "threads")
            started_s = time.monotonic()
            vars(plain)[name](counting)
            wall_s = time.monotonic() - started_s
        requests, round_trips = counting.num_requests, counting.num_requests
        computed, generated = counting.computed_tokens, counting.generated_tokens
    else:
        program = json.loads(to_json(vars(authored)[name].trace()))
        body = {"program": program, "arguments": tasks.ARGUMENTS[name], "seed": SEED, "cache_salt": salt}
        started_s = time.monotonic()
        answer = server.post({**body, "passes": [] if way == "off" else None})
        wall_s = time.monotonic() - started_s
        usage = answer["usage"]
        requests, round_trips = usage["requests"], 1
        computed, generated = usage["computed_tokens"], usage["generated_tokens"]
    return {"wall_s": wall_s, "computed": computed, "generated": generated, "requests": requests,
            "round_trips": round_trips, "steps": server.num_steps() - steps}  # fmt: skip


class Watched(InProcessRequests):
    """Tells the oracle of every request."""

    def __init__(self, oracle: Oracle, requests: InProcessRequests) -> None:
        vars(self).update(vars(requests))
        self._oracle = oracle

    async def generate(self, submit: wire.Submit) -> AsyncGenerator[Any, None]:
        """The request's events."""
        self._oracle.ask(submit.prompt)
        said: list[int] = []
        async with aclosing(super().generate(submit)) as events:
            async for event in events:
                if isinstance(event, wire.Tokens):
                    said += event.token_ids
                yield event
        if submit.sampling.prompt_logprobs is None:
            self._oracle.answered(submit.prompt, said)


def sharing(llm: LLM, name: str) -> dict[str, int]:
    """Prompt tokens computed in this process, and the least that the oracle finds for the same requests."""
    oracle = Oracle()
    runner = ProgramRunner(
        requests=lambda: Watched(oracle, llm._program_requests()),
        text=llm._text,
        limits=llm._limits,
        max_parallel=64,
        tokens_per_page=PAGE_SIZE,
    )
    options = RunOptions(seed=SEED, namespace=f"{name}-oracle")
    result = runner.run(vars(authored)[name], tasks.ARGUMENTS[name], options)
    allowed = oracle.num_least + PAGE_SIZE * oracle.num_requests
    return {"computed": result.usage.computed_tokens, "least": oracle.num_least, "allowed": allowed}


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def table(report: dict[str, Any]) -> str:
    """A row a task and way."""
    heads = (
        ("way", 9),
        ("wall s", 8),
        ("x plain", 9),
        ("computed", 10),
        ("steps", 7),
        ("generated", 11),
        ("requests", 10),
    )
    lines = [f"{'task':17}" + "".join(f"{head:>{width}}" for head, width in (*heads, ("trips", 7)))]
    for name, ways in report.items():
        for way in WAYS:
            row = ways[way]
            speedup = ways["plain"]["wall_s"] / row["wall_s"]
            lines.append(
                f"{name:17}{way:>9}{row['wall_s']:8.2f}{speedup:9.2f}{row['computed']:10.0f}{row['steps']:7.0f}"
                f"{row['generated']:11.0f}{row['requests']:10.0f}{row['round_trips']:7.0f}"
            )
        found = ways["sharing"]
        lines.append(
            f"{'':17}in process, on: {found['computed']} computed, oracle {found['least']}, allowed {found['allowed']}"
        )
    return "\n".join(lines)
