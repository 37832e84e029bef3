"""Times of single steps, without scheduler, server or text: `python -m bench.steps [--model M] [--quantize Q]`.

Prefill of 128 and 1,024 tokens in one step, decode of one row and of 32 rows with a context of 300 tokens. Prints a
table and, with --write, adds bench/results/<date>-steps-<machine>.json. For work on kernels, and for machines that
have no peers installed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import torch

from bench import machine, rows
from bench.rows import Context, Series
from phloem.core.plan import LAST_LOGITS, RowStart, StepPlan
from phloem.core.request import SamplingParams
from phloem.launch.models import locate
from phloem.runtime.exec.build import BuiltWorker, build_worker

OURS = "phloem"
PAGE_SIZE, MAX_ROWS, CONTEXT, REPETITIONS, STEPS = 32, 32, 300, 4, 30
PAGES_PER_ROW = -(-(CONTEXT + REPETITIONS * STEPS + STEPS) // PAGE_SIZE)
LONGEST = 1024


class Bench:
    """A worker that is handed plans without a scheduler: pages and rows are ours to choose."""

    def __init__(self, built: BuiltWorker) -> None:
        self._worker = built.worker
        self._vocab_size = built.vocab_size
        self._step = 0

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds of the one step that computes a prompt."""
        began_s = time.perf_counter()
        self._start(row=0, num_tokens=num_tokens)
        elapsed_s = time.perf_counter() - began_s
        self._submit(ends=(0,))
        return elapsed_s

    def decode_s(self, num_rows: int) -> float:
        """Seconds of the median step in which `num_rows` rows compute one token each."""
        for row in range(num_rows):
            self._start(row=row, num_tokens=CONTEXT)
        times = []
        for _ in range(STEPS):
            began_s = time.perf_counter()
            self._submit(rows=tuple(range(num_rows)), num_tokens=(1,) * num_rows, logits=(LAST_LOGITS,) * num_rows)
            times.append(time.perf_counter() - began_s)
        self._submit(ends=tuple(range(num_rows)))
        return sorted(times)[STEPS // 2]

    def _start(self, *, row: int, num_tokens: int) -> None:
        tokens = tuple((1000 + row + place) % self._vocab_size for place in range(num_tokens))
        first = row * PAGES_PER_ROW
        pages = tuple(range(first, first + max(PAGES_PER_ROW, -(-num_tokens // PAGE_SIZE))))
        start = RowStart(row, row, tokens, num_tokens, 0, pages, SamplingParams(temperature=0), 0)
        self._submit(starts=(start,), rows=(row,), num_tokens=(num_tokens,), logits=(LAST_LOGITS,))

    def _submit(self, **parts: tuple[object, ...]) -> None:
        self._step += 1
        self._worker.submit(StepPlan(step=self._step, **parts)).wait()  # type: ignore[arg-type]


def measure(built: BuiltWorker) -> list[Series]:
    """Every repetition of every metric; the first of each is a warm-up and not kept."""
    bench = Bench(built)
    series = []
    for num_tokens in (128, LONGEST):
        values = [num_tokens / bench.prefill_s(num_tokens) for _ in range(REPETITIONS + 1)]
        series.append(_series(f"prefill_{num_tokens}", "tok/s", values))
    for num_rows in (1, MAX_ROWS):
        values = [num_rows / bench.decode_s(num_rows) for _ in range(REPETITIONS + 1)]
        series.append(_series(f"decode_{num_rows}_rows", "tok/s", values))
    return series


def _series(metric: str, unit: str, values: list[float]) -> Series:
    return Series(workload="steps", metric=metric, unit=unit, engine=OURS, values=tuple(values[1:]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument("--model", default="default", help="as for phloem serve")
    parser.add_argument("--quantize", default="auto", help="as for phloem serve")
    parser.add_argument("--dtype", default="auto", help="as for phloem serve")
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument("--write", metavar="NAME", help="write bench/results/<date>-steps-NAME.json")
    options = parser.parse_args(argv)
    location = locate(options.model)
    built = build_worker(
        model=location.path if isinstance(location.path, Path) else location.name,
        dtype=options.dtype,
        quantize=options.quantize,
        device="cpu",
        threads=options.threads,
        max_model_len=2048,
        memory_gb=1.0,
        page_size=PAGE_SIZE,
        max_running=MAX_ROWS,
        max_step_tokens=LONGEST,
        overlap_depth=0,
        report=lambda stage, seconds: None,
    )
    found = measure(built)
    context = Context(
        machine=f"{machine.measure(options.threads or os.cpu_count() or 1).describe()}; {built.backend}",
        command=shlex.join(["python", "-m", "bench.steps", *(sys.argv[1:] if argv is None else argv)]),
        versions={"python": sys.version.split()[0], "torch": str(torch.__version__)},
        date=rows.now(),
        commit=rows.current_commit(),
    )
    print(f"{location.name}: {context.machine}\n{rows.table(found, ours=OURS, floors={})}")
    if options.write:
        made = rows.make_rows(found, [], floors={}, context=context)
        print(rows.write(made, found, workload=f"steps-{options.write}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
