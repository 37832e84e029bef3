"""Constrained decoding, measured on the default model and the CPU.

    python -m bench.structured forced     steps and seconds that forced tokens save on a JSON workload; same tokens?
    python -m bench.structured hostile    inter-token latency of innocent streams while hostile schemas arrive
    python -m bench.structured            both; writes bench/results/<date>-structured.json

`forced` runs the same requests with forced tokens on and off (the matcher forces nothing), one request at a time and as
a batch. `hostile` talks to a server over HTTP: streams without a constraint run in a closed loop while, every second, a
schema arrives that was never seen before and takes longer to compile than the sandbox allows; quiet and hostile phases
alternate.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import httpx
import numpy as np

from bench import machine, rows
from phloem import LLM, Constraint, SamplingParams
from phloem.runtime.grammar.compile import version
from phloem.runtime.grammar.matcher import Matcher

URL = re.compile(r"http://[\d.]+:\d+")
PHASE_S, NUM_PHASES, NUM_STREAMS = 8.0, 4, 4
MAX_TOKENS = 160
PERSON = {
    "type": "object",
    "properties": {
        "full_name": {"type": "string", "maxLength": 30},
        "year_of_birth": {"type": "integer", "minimum": 1000, "maximum": 2020},
        "occupation": {"enum": ["scientist", "painter", "writer", "composer", "explorer"]},
        "is_alive": {"type": "boolean"},
        "known_for": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 1, "maxItems": 2},
    },
    "required": ["full_name", "year_of_birth", "occupation", "is_alive", "known_for"],
    "additionalProperties": False,
}
PEOPLE = ("Marie Curie", "Claude Monet", "Jane Austen", "Clara Schumann", "Roald Amundsen", "Emmy Noether",
          "Frida Kahlo", "Leo Tolstoy", "Bela Bartok", "Amelia Earhart", "Alan Turing", "Paul Klee")  # fmt: skip
PROMPT = "{name} is well known. Describe {name} as a JSON object with a name, a year of birth and an occupation.\n"


def forced(llm: LLM) -> dict[str, Any]:
    """Steps and seconds of the JSON workload with and without forced tokens."""
    constraint = Constraint("json_schema", json.dumps(PERSON))
    llm.generate("warm", SamplingParams(constraint=constraint, max_tokens=4), progress=False)
    found: dict[str, Any] = {}
    for temperature in (0.0, 0.8):
        on = [_forced_run(llm, constraint, temperature, is_batch=is_batch) for is_batch in (False, True)]
        with mock.patch.object(Matcher, "force", return_value=[]):
            off = [_forced_run(llm, constraint, temperature, is_batch=is_batch) for is_batch in (False, True)]
        for kind, with_it, without in zip(("one at a time", "batch"), on, off):
            assert with_it["tokens"] == without["tokens"], "forced tokens changed the text"
            found[f"{kind}, temperature {temperature}"] = {
                "tokens": sum(map(len, with_it["tokens"])),
                "cut": with_it["cut"],
                "steps": with_it["steps"],
                "steps_unforced": without["steps"],
                "steps_saved": round(1 - with_it["steps"] / without["steps"], 3),
                "seconds": round(with_it["seconds"], 3),
                "seconds_unforced": round(without["seconds"], 3),
                "speedup": round(without["seconds"] / with_it["seconds"], 3),
                "identical_tokens": True,
            }
    return found


def _forced_run(llm: LLM, constraint: Constraint, temperature: float, *, is_batch: bool) -> dict[str, Any]:
    prompts = [PROMPT.format(name=name) for name in PEOPLE]
    params = [
        SamplingParams(constraint=constraint, temperature=temperature, seed=index, max_tokens=MAX_TOKENS)
        for index in range(len(prompts))
    ]
    llm.generate(prompts, SamplingParams(max_tokens=1), progress=False)  # both ways find the same prefixes cached
    began_s, before = time.perf_counter(), _num_steps(llm)
    if is_batch:
        outputs = llm.generate(prompts, params, progress=False)
    else:
        outputs = [llm.generate(prompt, each, progress=False)[0] for prompt, each in zip(prompts, params)]
    seconds = time.perf_counter() - began_s
    return {
        "tokens": [output.outputs[0].token_ids for output in outputs],
        "cut": sum(output.outputs[0].finish_reason == "length" for output in outputs),
        "steps": _num_steps(llm) - before,
        "seconds": seconds,
    }


def _num_steps(llm: LLM) -> int:
    """Asked of the scheduler itself: `LLM.stats` is as of the last time it was sent."""
    return llm._engine.loop._scheduler.stats(0.0).num_steps


# -- hostile schemas under load


def slow_body(number: int) -> bytes:
    """A request whose schema is under the size limit, was never seen before, and takes many seconds to compile: that is
    quadratic in its optional properties."""
    properties = {f"p{number}_{index}": {"type": "integer"} for index in range(11_000)}
    schema = {"type": "object", "properties": properties}
    return json.dumps({"prompt": "a", "max_tokens": 4, "guided_json": schema}).encode()


class Streams:
    """Innocent streams in a closed loop, and the gaps between their tokens."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stops = threading.Event()
        self.gaps_ms: list[float] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(NUM_STREAMS)]

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        body = {
            "prompt": f"Story number {number}: once upon a time",
            "max_tokens": 200,
            "ignore_eos": True,
            "stream": True,
        }
        with httpx.Client(timeout=60) as client:
            while not self._stops.is_set():
                last_s = None
                with client.stream("POST", f"{self._url}/v1/completions", json=body) as answer:
                    for line in answer.iter_lines():
                        if not line.startswith("data: {"):
                            continue
                        now_s = time.perf_counter()
                        if last_s is not None:
                            self.gaps_ms.append(1e3 * (now_s - last_s))
                        last_s = now_s
                        if self._stops.is_set():
                            break


def hostile() -> dict[str, Any]:
    """Gaps of innocent streams in quiet and hostile phases, in turn; what the hostile requests were answered."""
    gaps: dict[str, list[float]] = {"quiet": [], "hostile": []}
    answers: list[tuple[int, float]] = []
    bodies = [slow_body(number) for number in range(round(NUM_PHASES * PHASE_S) + NUM_PHASES)]
    with _server() as url, httpx.Client(timeout=60) as client:
        client.post(f"{url}/v1/completions", json={"prompt": "a", "regex": "warm", "max_tokens": 4}).raise_for_status()
        for phase in range(2 * NUM_PHASES):
            kind = "hostile" if phase % 2 else "quiet"
            with Streams(url) as streams:
                time.sleep(1.0)
                first = len(streams.gaps_ms)
                ends_s = time.perf_counter() + PHASE_S
                while time.perf_counter() < ends_s:
                    if kind == "hostile":
                        threading.Thread(target=_attack, args=(url, bodies.pop(), answers)).start()
                    time.sleep(1.0)
                gaps[kind] += streams.gaps_ms[first:]
            time.sleep(5.0)  # trials that are still under way end
    found = {kind: _percentiles(values) for kind, values in gaps.items()}
    return {
        **found,
        "ratio_p50": round(found["hostile"]["p50_ms"] / found["quiet"]["p50_ms"], 3),
        "ratio_p99": round(found["hostile"]["p99_ms"] / found["quiet"]["p99_ms"], 3),
        "hostile_requests": len(answers),
        "hostile_statuses": {str(status): sum(each == status for each, _ in answers) for status, _ in answers},
        "hostile_answer_s_max": round(max(seconds for _, seconds in answers), 2),
    }


def _attack(url: str, body: bytes, answers: list[tuple[int, float]]) -> None:
    began_s = time.perf_counter()
    answer = httpx.post(f"{url}/v1/completions", content=body, headers={"content-type": "application/json"}, timeout=60)
    answers.append((answer.status_code, time.perf_counter() - began_s))


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {
        "gaps": len(values),
        **{f"p{percent}_ms": round(float(np.percentile(values, percent)), 2) for percent in (50, 90, 99)},
        "max_ms": round(max(values), 2),
    }


@contextlib.contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "phloem", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = next((match for line in process.stdout if (match := URL.search(line))), None)
        assert found is not None, "the server did not start"
        yield found.group()
    finally:
        process.terminate()
        process.wait()


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.structured", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", default=["forced", "hostile"], help="forced, hostile")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    if "forced" in options.parts:
        with LLM() as llm:
            found["forced"] = forced(llm)
    if "hostile" in options.parts:
        found["hostile"] = hostile()
    print(json.dumps(found, indent=1))
    if len(found) == 2:
        context = {
            "machine": machine.measure(2).describe(),
            "command": "python -m bench.structured",
            "versions": {"llguidance": version()},
            "date": rows.now(),
            "commit": rows.current_commit(),
        }
        path = rows.RESULTS / f"{datetime.date.today()}-structured.json"
        path.write_text(json.dumps({**found, **context}, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path.relative_to(rows.ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
