"""`phloem bench --profile`: where the time of single steps goes, op by op, beside what each op moves and computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.core.plan import LAST_LOGITS, NO_LOGITS, RowStart, StepPlan
from phloem.core.request import SamplingParams
from phloem.graph.cost import StepLoad
from phloem.graph.lower.program import OpTime
from phloem.launch.models import locate
from phloem.runtime.exec.build import build_worker
from phloem.runtime.exec.worker import Worker

CONTEXT, PROMPT, NUM_ROWS, REPEATS = 300, 1024, 32, 5


class Line(msgspec.Struct, frozen=True):
    """All calls of one kind in one step. `seconds` sums the best of each call; rates are None for nothing to count."""

    step: str
    op: str
    num_calls: int
    seconds: float
    bytes_per_s: float | None
    flops_per_s: float | None


@dataclass(frozen=True)
class Step:
    """A kind of step: `num_rows` rows compute `num_tokens` tokens each, the last of a context of `context`."""

    title: str
    num_rows: int
    num_tokens: int
    context: int


def steps(max_model_len: int) -> tuple[Step, ...]:
    """What is measured: as long as the engine's context allows."""
    context, prompt = (min(wanted, max_model_len - 2) for wanted in (CONTEXT, PROMPT))
    return (
        Step(f"decode, 1 row of {context}", 1, 1, context + 1),
        Step(f"decode, {NUM_ROWS} rows of {context}", NUM_ROWS, 1, context + 1),
        Step(f"prompt of {prompt:,}", 1, prompt, prompt),
    )


def profile(config: Config) -> list[Line]:
    """Build the worker, run each kind of step REPEATS times and keep the best time of each op. ConfigError on a GPU."""
    location = locate(config.model)
    built = build_worker(
        model=location.path if isinstance(location.path, Path) else location.name,
        dtype=config.dtype,
        quantize=config.quantize,
        device=config.device,
        threads=config.threads,
        max_model_len=config.max_model_len,
        memory_gb=config.memory_gb,
        page_size=config.page_size,
        max_running=NUM_ROWS,
        max_step_tokens=PROMPT,
        overlap_depth=0,
        report=lambda stage, seconds: None,
    )
    worker = built.worker
    try:
        if not isinstance(worker, Worker):
            raise ConfigError("--profile times the steps of a CPU; add --device cpu", field="device")
        pages_per_row = -(-(CONTEXT + 2) // config.page_size)
        needed = max(NUM_ROWS * pages_per_row, -(-(PROMPT + 2) // config.page_size))
        if built.num_pages < needed:
            message = f"too little memory: {needed} pages are needed, {built.num_pages} fit; raise --memory-gb"
            raise ConfigError(message, field="memory_gb")
        print(f"{location.name}\n{built.backend}")
        found = [(step, _measure(worker, step, page_size=config.page_size)) for step in steps(built.max_model_len)]
        return [line for step, times in found for line in _lines(step, times)]
    finally:
        worker.close()


def show(lines: Sequence[Line]) -> None:
    """Print one table a step, longest first."""
    for title in dict.fromkeys(line.step for line in lines):
        chosen = [line for line in lines if line.step == title]
        total_s = sum(line.seconds for line in chosen)
        table = Table("op", title=f"{title}: {total_s * 1e3:.2f} ms", title_justify="left")
        for name in ("calls", "ms", "share", "GB/s", "GFLOP/s"):
            table.add_column(name, justify="right")
        for line in chosen:
            rates = (_rate(line.bytes_per_s), _rate(line.flops_per_s))
            share = f"{line.seconds / total_s:.1%}"
            table.add_row(line.op, str(line.num_calls), f"{line.seconds * 1e3:.3f}", share, *rates)
        Console().print(table)


def _measure(worker: Worker, step: Step, *, page_size: int) -> list[OpTime]:
    """The best of REPEATS, op by op."""
    rows = tuple(range(step.num_rows))
    worker.submit(StepPlan(step=0, starts=tuple(_starts(step, page_size)))).wait()
    if step.num_tokens == 1:  # everything but the last token, a row at a time
        for row in rows:
            done = (step.context - 1,)
            worker.submit(StepPlan(step=1, rows=(row,), num_tokens=done, logits=(NO_LOGITS,))).wait()
    plan = StepPlan(step=2, rows=rows, num_tokens=(step.num_tokens,) * len(rows), logits=(LAST_LOGITS,) * len(rows))
    num_tokens = step.num_rows * step.num_tokens
    load = StepLoad(num_tokens=num_tokens, num_logits=step.num_rows, num_rows=step.num_rows, context=step.context)
    runs = [worker.profile(plan, load) for _ in range(REPEATS)]
    worker.submit(StepPlan(step=3, ends=rows)).wait()
    return [min(times, key=lambda time: time.seconds) for times in zip(*runs, strict=True)]


def _starts(step: Step, page_size: int) -> Iterator[RowStart]:
    pages_per_row = -(-(step.context + 1) // page_size)
    for row in range(step.num_rows):
        tokens = tuple(5 + (row + place) % 200 for place in range(step.context))
        pages = tuple(range(row * pages_per_row, (row + 1) * pages_per_row))
        yield RowStart(row, row, tokens, step.context, 0, pages, SamplingParams(temperature=0), 0)


def _lines(step: Step, times: Sequence[OpTime]) -> list[Line]:
    """Calls of one name added up, longest first."""
    by_name: dict[str, list[OpTime]] = {}
    for time in times:
        by_name.setdefault(time.op, []).append(time)
    lines = [_line(step.title, name, calls) for name, calls in by_name.items()]
    return sorted(lines, key=lambda line: -line.seconds)


def _line(title: str, name: str, calls: Sequence[OpTime]) -> Line:
    seconds = sum(call.seconds for call in calls)
    num_bytes, flops = sum(call.num_bytes for call in calls), sum(call.flops for call in calls)
    rates = [amount / seconds if amount else None for amount in (num_bytes, flops)]
    return Line(title, name, len(calls), seconds, *rates)


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:,.1f}"
