"""(f) The scheduler alone: microseconds to plan and commit one step of 256 steady rows, on the null worker.

`python -m bench.scheduler` prints the table and writes the rows; `python -m bench scheduler` does so beside the others.
The worker's own time is not counted, and neither is its verification, which is off.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence

import msgspec

from bench import machine, rows
from bench.rows import Context, Series
from phloem.core.request import SamplingParams
from phloem.core.wire import Submit
from phloem.runtime.null import NULL_VOCAB_SIZE, NullWorker
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler
from phloem.runtime.sched.scheduler import Scheduler

OURS = "phloem"
NUM_ROWS = 256
NUM_WAITING = 256
PROMPT_TOKENS = 128
PAGE_SIZE = 32
WARM_STEPS = 64
STEPS_PER_REPETITION = 128
REPETITIONS = 12
NUM_PAGES = (PROMPT_TOKENS + WARM_STEPS + STEPS_PER_REPETITION * REPETITIONS) // PAGE_SIZE * (NUM_ROWS + 8)


class Steady:
    """256 rows that decode for ever, in step with a worker without a model."""

    def __init__(self, *, num_waiting: int) -> None:
        settings = SchedulerSettings(
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            max_rows=NUM_ROWS,
            max_step_tokens=8192,
            max_model_len=1 << 20,
            policy="lpm",
        )
        self.scheduler: Scheduler = make_scheduler(settings)
        self._worker = NullWorker(
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            max_rows=NUM_ROWS,
            choose=lambda row: row.num_computed % NULL_VOCAB_SIZE,
            verify=False,
        )
        for index in range(NUM_ROWS + num_waiting):
            prompt = tuple((index * 7 + place * 13) % NULL_VOCAB_SIZE for place in range(PROMPT_TOKENS))
            sampling = SamplingParams(max_tokens=WARM_STEPS + STEPS_PER_REPETITION * (REPETITIONS + 1), ignore_eos=True)
            self.scheduler.admit(Submit(f"request-{index}", prompt, sampling), 0.0)
        for _ in range(WARM_STEPS):
            self.step()

    def step(self) -> tuple[float, float]:
        """One step; seconds to plan it and to commit it."""
        start_s = time.perf_counter()
        plan = self.scheduler.plan(0.0)
        planned_s = time.perf_counter()
        result = self._worker.submit(plan).wait()
        computed_s = time.perf_counter()
        self.scheduler.commit(plan, result, 0.0)
        return planned_s - start_s, time.perf_counter() - computed_s


def series() -> list[Series]:
    """Mean microseconds a step, one value a repetition: page boundaries and all."""
    return [*_measure("steady", num_waiting=0), *_measure("steady_with_queue", num_waiting=NUM_WAITING)]


def _measure(name: str, *, num_waiting: int) -> list[Series]:
    steady = Steady(num_waiting=num_waiting)
    plans, commits = [], []
    for _ in range(REPETITIONS):
        times = [steady.step() for _ in range(STEPS_PER_REPETITION)]
        plans.append(sum(plan_s for plan_s, _ in times) / len(times) * 1e6)
        commits.append(sum(commit_s for _, commit_s in times) / len(times) * 1e6)
    stats = steady.scheduler.stats(0.0)
    assert (stats.num_running, stats.num_waiting) == (NUM_ROWS, num_waiting), "not a steady state"
    note = f"{NUM_ROWS} rows, {num_waiting} waiting"
    return [
        Series(workload="scheduler", metric=f"{name}_{part}", unit="us", engine=OURS, values=tuple(values), note=note)
        for part, values in (
            ("step", [plan + commit for plan, commit in zip(plans, commits, strict=True)]),
            ("plan", plans),
            ("commit", commits),
        )
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write unless `--no-write`."""
    found, measured = machine.measure(2), series()
    print(rows.table(measured, ours=OURS, floors={}))
    if "--no-write" not in arguments:
        context = Context(
            machine=found.describe(),
            command=shlex.join(["python", "-m", "bench.scheduler", *arguments]),
            versions={"python": sys.version.split()[0], "msgspec": msgspec.__version__},
            date=rows.now(),
            commit=rows.current_commit(),
        )
        made = rows.make_rows(measured, [], floors={}, context=context)
        print(rows.write(made, measured, workload="scheduler"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
