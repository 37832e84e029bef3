"""`phloem bench`: four workloads on this machine, in this process, as a table. Peers are compared in bench/."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from phloem.core.errors import ConfigError
from phloem.core.request import SamplingParams
from phloem.launch.offline import LLM
from phloem.launch.options import resolve_options

REPEATS = 3
SEED = 0


class Row(msgspec.Struct, frozen=True):
    """One measured number."""

    workload: str
    metric: str
    value: float
    unit: str


class Workloads:
    """The four workloads. Prompts are random token ids and never repeat, so that no workload finds another's cache."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._random = random.Random(SEED)

    def single_stream(self) -> Iterator[Row]:
        """(a) 128 tokens in, 128 greedy tokens out, one request at a time."""
        firsts, rates = [], []
        for _ in range(REPEATS):
            first_s = self._time([self._prompt(128)], [1])
            total_s = self._time([self._prompt(128)], [128])
            firsts.append(first_s)
            rates.append(127 / (total_s - first_s))
        yield Row("a: 128 in, 128 out, alone", "time to first token", statistics.median(firsts), "s")
        yield Row("a: 128 in, 128 out, alone", "decode", statistics.median(rates), "tok/s")

    def prefill(self) -> Iterator[Row]:
        """(b) A prompt of 1,024 tokens."""
        times = [self._time([self._prompt(1024)], [1]) for _ in range(REPEATS)]
        yield Row("b: 1,024 in", "prefill", 1024 / statistics.median(times), "tok/s")

    def throughput(self) -> Iterator[Row]:
        """(c) 32 requests at once, 100 to 512 tokens in, 64 to 256 out."""
        prompts = [self._prompt(self._random.randint(100, 512)) for _ in range(32)]
        counts = [self._random.randint(64, 256) for _ in range(32)]
        yield Row("c: 32 requests, mixed", "output", sum(counts) / self._time(prompts, counts), "tok/s")

    def shared_prefix(self) -> Iterator[Row]:
        """(d) 32 requests that share 1,024 tokens, 32 more each, 32 out."""
        prefix = self._prompt(1024)
        prompts = [prefix + self._prompt(32) for _ in range(32)]
        yield Row("d: 32 requests, shared prefix", "output", 32 * 32 / self._time(prompts, [32] * 32), "tok/s")

    def _prompt(self, length: int) -> list[int]:
        """Random ids of ordinary tokens."""
        return [self._random.randrange(self._llm.vocab_size) for _ in range(length)]

    def _time(self, prompts: list[list[int]], counts: list[int]) -> float:
        params = [SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True) for count in counts]
        started_s = time.perf_counter()
        self._llm.generate(prompts, params, progress=False)
        return time.perf_counter() - started_s


def bench(arguments: argparse.Namespace) -> int:
    """Run the chosen workloads and print a table; with --json also write the rows."""
    if arguments.profile:
        return _profile(arguments)
    chosen = [letter.strip() for letter in arguments.only.split(",") if letter.strip()]
    if unknown := sorted(set(chosen) - set("abcd")):
        raise ConfigError(f"--only {arguments.only!r}: no workload {unknown[0]!r}; choose from a,b,c,d", field="only")
    config = resolve_options(arguments).config
    with LLM(**msgspec.structs.asdict(config)) as llm:
        print(f"{llm.name}\n{llm.memory}")
        workloads = Workloads(llm)
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True), progress=False)  # warm up
        runs: dict[str, Callable[[], Iterator[Row]]] = {
            "a": workloads.single_stream,
            "b": workloads.prefill,
            "c": workloads.throughput,
            "d": workloads.shared_prefix,
        }
        rows = [row for letter in chosen for row in runs[letter]()]
    _print_table(rows)
    if arguments.json is not None:
        _write(rows, arguments.json)
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from phloem.launch import profile  # imports torch

    lines = profile.profile(resolve_options(arguments).config)
    profile.show(lines)
    if arguments.json is not None:
        _write(lines, arguments.json)
    return 0


def _print_table(rows: list[Row]) -> None:
    table = Table("workload", "metric")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for row in rows:
        table.add_row(
            row.workload, row.metric, f"{row.value:.3f}" if row.unit == "s" else f"{row.value:,.0f}", row.unit
        )
    Console().print(table)


def _write(rows: Sequence[msgspec.Struct], path: Path) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(list(rows))))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", field="json") from error
