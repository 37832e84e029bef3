"""`phloem bench --profile`: where the time of single steps goes, op by op, beside what each op moves and computes.

On a GPU each op is launched alone behind a busy device, so that its time is the device's; the title also has the time
of the same step as it is served (one graph), which need not be the sum.
"""

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
from phloem.graph.lower.program import Ceilings, OpTime, StepTimes
from phloem.launch.models import locate
from phloem.runtime.exec.build import build_worker, runs_on_gpu
from phloem.runtime.exec.cuda_worker import CudaWorker
from phloem.runtime.exec.worker import Worker

REPEATS = 5


class Line(msgspec.Struct, frozen=True):
    """All calls of one kind in one step. `seconds` sums the best of each call; rates are None for nothing to count.
    `of_ceiling` is how near they come to the least they could take, where the device's ceilings were measured;
    `step_s` the time of the whole step, run at once."""

    step: str
    op: str
    num_calls: int
    seconds: float
    bytes_per_s: float | None
    flops_per_s: float | None
    of_ceiling: float | None = None
    step_s: float | None = None


@dataclass(frozen=True)
class Step:
    """A kind of step: `num_rows` rows compute `num_tokens` tokens each, the last of a context of `context`."""

    title: str
    num_rows: int
    num_tokens: int
    context: int


@dataclass(frozen=True)
class Sizes:
    """How large the measured steps are."""

    num_rows: int
    context: int
    prompt: int


ON_CPU, ON_GPU = Sizes(32, 300, 1024), Sizes(256, 1024, 8192)


def steps(max_model_len: int, sizes: Sizes = ON_CPU) -> tuple[Step, ...]:
    """What is measured: as long as the engine's context allows."""
    context, prompt = (min(wanted, max_model_len - 2) for wanted in (sizes.context, sizes.prompt))
    rows = sizes.num_rows
    return (
        Step(f"decode, 1 row of {context:,}", 1, 1, context + 1),
        Step(f"decode, {rows} rows of {context:,}", rows, 1, context + 1),
        Step(f"prompt of {prompt:,}", 1, prompt, prompt),
    )


def profile(config: Config) -> list[Line]:
    """Build the worker, run each kind of step REPEATS times and keep the best time of each op."""
    location = locate(config.model)
    is_on_gpu = runs_on_gpu(device=config.device, dtype=config.dtype, quantize=config.quantize)
    sizes = ON_GPU if is_on_gpu else ON_CPU
    built = build_worker(
        model=location.path if isinstance(location.path, Path) else location.name,
        dtype=config.dtype,
        quantize=config.quantize,
        kv_cache_dtype=config.kv_cache_dtype,
        deterministic=config.deterministic,
        device=config.device,
        threads=config.threads,
        max_model_len=config.max_model_len,
        memory_gb=config.memory_gb,
        page_size=config.page_size,
        max_running=sizes.num_rows,
        max_step_tokens=sizes.prompt,
        overlap_depth=0,
        report=lambda stage, seconds: None,
    )
    worker = built.worker
    assert isinstance(worker, Worker | CudaWorker), "no other worker times its steps"
    try:
        pages_per_row = -(-(sizes.context + 2) // config.page_size)
        needed = max(sizes.num_rows * pages_per_row, -(-(sizes.prompt + 2) // config.page_size))
        if built.num_pages < needed:
            message = f"too little memory: {needed} pages are needed, {built.num_pages} fit; raise --memory-gb"
            raise ConfigError(message, field="memory_gb")
        print(f"{location.name}\n{built.backend}")
        ceilings = worker.ceilings()
        if ceilings is not None:
            print(f"ceilings: {ceilings.bytes_per_s / 1e9:,.0f} GB/s, {ceilings.flops_per_s / 1e12:,.0f} TFLOP/s")
        chosen = steps(built.max_model_len, sizes)
        found = [(step, _measure(worker, step, page_size=config.page_size)) for step in chosen]
        return [line for step, times in found for line in _lines(step, times, ceilings)]
    finally:
        worker.close()


def show(lines: Sequence[Line]) -> None:
    """Print one table a step, longest first."""
    for title in dict.fromkeys(line.step for line in lines):
        chosen = [line for line in lines if line.step == title]
        total_s = sum(line.seconds for line in chosen)
        whole = "" if chosen[0].step_s is None else f"; the whole step at once: {chosen[0].step_s * 1e3:.2f} ms"
        table = Table(title=f"{title}: {total_s * 1e3:.2f} ms{whole}", title_justify="left")
        table.add_column("op", no_wrap=True)
        for name in ("calls", "ms", "share", "GB/s", "GFLOP/s", "of ceiling"):
            table.add_column(name, justify="right")
        for line in chosen:
            rates = (_rate(line.bytes_per_s), _rate(line.flops_per_s))
            share = f"{line.seconds / total_s:.1%}"
            ceiling = "" if line.of_ceiling is None else f"{line.of_ceiling:.0%}"
            table.add_row(line.op, str(line.num_calls), f"{line.seconds * 1e3:.3f}", share, *rates, ceiling)
        Console().print(table)


def _measure(worker: Worker | CudaWorker, step: Step, *, page_size: int) -> StepTimes:
    """The best of REPEATS, op by op and as a whole."""
    rows = tuple(range(step.num_rows))
    starts = tuple(_starts(step, page_size))
    if step.num_tokens == 1:  # everything but the last token, a row at a time
        for start in starts:
            before = StepPlan(
                step=0, starts=(start,), rows=(start.row,), num_tokens=(step.context - 1,), logits=(NO_LOGITS,)
            )
            worker.submit(before).wait()
        starts = ()
    plan = StepPlan(
        step=1, starts=starts, rows=rows, num_tokens=(step.num_tokens,) * len(rows), logits=(LAST_LOGITS,) * len(rows)
    )
    num_tokens = step.num_rows * step.num_tokens
    load = StepLoad(num_tokens=num_tokens, num_logits=step.num_rows, num_rows=step.num_rows, context=step.context)
    runs = [worker.profile(plan, load) for _ in range(REPEATS)]
    worker.submit(StepPlan(step=2, ends=rows)).wait()
    wholes = [run.whole_s for run in runs if run.whole_s is not None]
    best = [min(times, key=lambda time: time.seconds) for times in zip(*(run.ops for run in runs), strict=True)]
    return StepTimes(best, min(wholes, default=None))


def _starts(step: Step, page_size: int) -> Iterator[RowStart]:
    pages_per_row = -(-(step.context + 1) // page_size)
    for row in range(step.num_rows):
        tokens = tuple(5 + (row + place) % 200 for place in range(step.context))
        pages = tuple(range(row * pages_per_row, (row + 1) * pages_per_row))
        yield RowStart(row, row, tokens, step.context, 0, pages, SamplingParams(temperature=0), 0)


def _lines(step: Step, times: StepTimes, ceilings: Ceilings | None) -> list[Line]:
    """Calls of one name added up, longest first."""
    by_name: dict[str, list[OpTime]] = {}
    for time in times.ops:
        by_name.setdefault(time.op, []).append(time)
    lines = [_line(step.title, name, calls, ceilings, times.whole_s) for name, calls in by_name.items()]
    return sorted(lines, key=lambda line: -line.seconds)


def _line(title: str, name: str, calls: Sequence[OpTime], ceilings: Ceilings | None, step_s: float | None) -> Line:
    total = OpTime(
        name,
        sum(call.seconds for call in calls),
        sum(call.num_bytes for call in calls),
        sum(call.flops for call in calls),
    )
    bytes_per_s, flops_per_s = (each / total.seconds if each else None for each in (total.num_bytes, total.flops))
    of_ceiling = ceilings.share(total) if ceilings is not None and (total.num_bytes or total.flops) else None
    return Line(title, name, len(calls), total.seconds, bytes_per_s, flops_per_s, of_ceiling, step_s)


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:,.1f}"
