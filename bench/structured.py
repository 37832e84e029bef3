"""Constrained decoding, measured on the default model and the CPU.

    python -m bench.structured            both; writes bench/results/<date>-structured.json
    python -m bench.structured forced     steps and seconds that forced tokens save on a JSON workload; same tokens?
    python -m bench.structured hostile    gaps between the tokens of innocent streams while hostile schemas arrive

`forced` runs the same requests with forced tokens on and off (the matcher forces nothing), one request at a time and as
a batch. `hostile` talks to a server over HTTP: streams without a constraint run in a closed loop, in phases in turn
without and with an adversary, whose schemas, one a second, were never seen before and take longer to compile than the
sandbox allows. In all phases an honest new schema arrives every second, too. A phase is a repetition.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import httpx
import numpy as np

from bench import machine, rows
from bench.rows import Series
from phloem import LLM, Constraint, SamplingParams
from phloem.runtime.grammar.compile import version
from phloem.runtime.grammar.matcher import Matcher

OURS = "phloem"
UNFORCED, GOAL, QUIET = "phloem, forced tokens off", "goal: at least", "phloem, no adversary"
LEAST_SAVED = 0.3
URL = re.compile(r"http://[\d.]+:\d+")
PHASE_S, NUM_PHASES, NUM_STREAMS = 4.0, 3, 4
REST_S = 2.0
"""After a phase: trials that are under way end."""
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


class ForcedRun(NamedTuple):
    """One run over the JSON workload."""

    tokens: list[tuple[int, ...]]
    num_steps: int
    seconds: float


def forced(llm: LLM) -> tuple[list[Series], list[Series]]:
    """Steps and seconds of the JSON workload with and without forced tokens: (ours, what they are compared with)."""
    constraint = Constraint("json_schema", json.dumps(PERSON))
    llm.generate("warm", SamplingParams(constraint=constraint, max_tokens=4), progress=False)
    ours, others = list[Series](), list[Series]()
    for temperature, is_batch in itertools.product((0.0, 0.8), (False, True)):
        on, off = list[ForcedRun](), list[ForcedRun]()
        for _ in range(2):
            on.append(_forced_run(llm, constraint, temperature, is_batch=is_batch))
            with mock.patch.object(Matcher, "force", return_value=[]):
                off.append(_forced_run(llm, constraint, temperature, is_batch=is_batch))
            assert on[-1].tokens == off[-1].tokens, "forced tokens changed the text"
        workload = f"json, {'batch' if is_batch else 'one at a time'}, temperature {temperature}"
        for runs, engine, found in ((on, OURS, ours), (off, UNFORCED, others)):
            found.append(_series(workload, "steps", "steps", engine, [run.num_steps for run in runs]))
            found.append(_series(workload, "time", "s", engine, [run.seconds for run in runs]))
        saved = [1 - with_it.num_steps / without.num_steps for with_it, without in zip(on, off)]
        ours.append(_series(workload, "steps_saved", "share", OURS, saved))
        others.append(_series(workload, "steps_saved", "share", GOAL, [LEAST_SAVED]))
    return ours, others


def _series(workload: str, metric: str, unit: str, engine: str, values: Sequence[float]) -> Series:
    return Series(
        workload=workload, metric=metric, unit=unit, engine=engine, values=tuple(round(each, 4) for each in values)
    )


def _forced_run(llm: LLM, constraint: Constraint, temperature: float, *, is_batch: bool) -> ForcedRun:
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
    return ForcedRun([output.outputs[0].token_ids for output in outputs], _num_steps(llm) - before, seconds)


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


class Adversary:
    """Sends a slow schema every second, if it is one (`is_hostile`), and an honest new one; keeps how they were
    answered: (status, seconds)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.Client(timeout=60)  # made once: making one takes 30 ms of the streams' interpreter
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self._bodies = [slow_body(number) for number in range(round(NUM_PHASES * PHASE_S) + NUM_PHASES)]
        self.slow: list[tuple[int, float]] = []
        self.honest: dict[bool, list[tuple[int, float]]] = {False: [], True: []}

    def send(self, *, is_hostile: bool) -> None:
        """One of each."""
        if is_hostile:
            self._start(self._bodies.pop(), self.slow)
        schema = {"enum": [f"the honest value {next(self._numbers)}"]}
        body = json.dumps({"prompt": "a", "max_tokens": 1, "guided_json": schema}).encode()
        self._start(body, self.honest[is_hostile])

    def join(self) -> None:
        """Wait for all answers."""
        for thread in self._threads:
            thread.join()

    def _start(self, body: bytes, answers: list[tuple[int, float]]) -> None:
        self._threads.append(threading.Thread(target=self._ask, args=(body, answers)))
        self._threads[-1].start()

    def _ask(self, body: bytes, answers: list[tuple[int, float]]) -> None:
        began_s = time.perf_counter()
        answer = self._client.post(
            f"{self._url}/v1/completions", content=body, headers={"content-type": "application/json"}
        )
        answers.append((answer.status_code, time.perf_counter() - began_s))


def hostile() -> tuple[list[Series], list[Series]]:
    """Gaps of innocent streams in phases with and without an adversary, in turn: (with, without)."""
    gaps: dict[bool, list[list[float]]] = {False: [], True: []}
    with _server() as url:
        adversary = Adversary(url)
        httpx.post(f"{url}/v1/completions", json={"prompt": "a", "regex": "warm", "max_tokens": 4}).raise_for_status()
        for phase in range(2 * NUM_PHASES):
            is_hostile = phase % 2 == 1
            with Streams(url) as streams:
                time.sleep(1.0)
                first, ends_s = len(streams.gaps_ms), time.perf_counter() + PHASE_S
                while time.perf_counter() < ends_s:
                    adversary.send(is_hostile=is_hostile)
                    time.sleep(1.0)
                gaps[is_hostile].append(streams.gaps_ms[first:])
            time.sleep(REST_S)
        adversary.join()
    workload = f"{NUM_STREAMS} streams beside a slow new schema a second"
    found: dict[bool, list[Series]] = {}
    for is_hostile, engine in ((True, OURS), (False, QUIET)):
        phases, honest = gaps[is_hostile], adversary.honest[is_hostile]
        assert all(status == 200 for status, _ in honest), honest
        found[is_hostile] = [
            *(
                _series(
                    workload, f"gap_p{percent}", "ms", engine, [float(np.percentile(each, percent)) for each in phases]
                )
                for percent in (50, 90, 99)
            ),
            _series(workload, "gap_max", "ms", engine, [max(each) for each in phases]),
            _series(workload, "honest_new_schema", "s", engine, [seconds for _, seconds in honest]),
        ]
    statuses = Counter(status for status, _ in adversary.slow)
    assert set(statuses) <= {400, 503}, statuses
    for status, count in sorted(statuses.items()):
        found[True].append(_series(workload, f"slow_answered_{status}", "requests", OURS, [count]))
        seconds = [each for other, each in adversary.slow if other == status]
        found[True].append(_series(workload, f"slow_answered_{status}_after_max", "s", OURS, [max(seconds)]))
    return found[True], found[False]


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
    ours, others = list[Series](), list[Series]()
    if "forced" in options.parts:
        with LLM() as llm:
            found = forced(llm)
        ours, others = ours + found[0], others + found[1]
    if "hostile" in options.parts:
        found = hostile()
        ours, others = ours + found[0], others + found[1]
    print(rows.table([*ours, *others], ours=OURS, floors={}))
    if {"forced", "hostile"} <= set(options.parts):
        context = rows.Context(
            machine=machine.measure(2).describe(),
            command="python -m bench.structured",
            versions={"llguidance": version()},
            date=rows.now(),
            commit=rows.current_commit(),
        )
        lines = rows.make_rows(ours, others, floors={}, context=context)
        print(f"wrote {rows.write(lines, [*ours, *others], workload='structured').relative_to(rows.ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
