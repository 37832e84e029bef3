"""Where a step's time goes: the host's share by phase, the device's by kernel."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Profile:
    """Times the scheduler's and the worker's calls inside a loop, and traces the device's kernels on request."""

    def __init__(self, loop: Any) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._calls: dict[str, int] = defaultdict(int)
        scheduler, worker = loop._scheduler, loop._worker
        scheduler.plan = self._timed("plan", scheduler.plan)
        scheduler.commit = self._timed("commit", scheduler.commit)
        submit = self._timed("submit", worker.submit)

        def submit_and_watch(plan: Any) -> Any:
            handle = submit(plan)
            return Watched(self._timed("wait", handle.wait))

        worker.submit = submit_and_watch
        self._since_s = time.perf_counter()

    def clear(self) -> None:
        """Forget what was seen."""
        self._seconds.clear()
        self._calls.clear()
        self._since_s = time.perf_counter()

    def show(self) -> None:
        """A line a phase: mean microseconds a call, share of the wall clock."""
        wall_s = time.perf_counter() - self._since_s
        for name, seconds in sorted(self._seconds.items(), key=lambda item: -item[1]):
            print(f"  host {name:<8} {self._calls[name]:>6} calls {seconds / self._calls[name] * 1e6:9.1f} us each "
                  f"{seconds / wall_s:6.1%}")  # fmt: skip
        print(f"  host other    {(wall_s - sum(self._seconds.values())) / wall_s:.1%} of {wall_s:.2f} s", flush=True)

    def trace(self, run: Callable[[], object], table: Path | None) -> None:
        """Run under the profiler; print the kernels that take most of the device's time."""
        from torch.profiler import ProfilerActivity, profile

        began_s = time.perf_counter()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run()
        wall_s = time.perf_counter() - began_s
        averages = sorted(profiler.key_averages(), key=lambda one: -one.self_device_time_total)
        busy_s = sum(one.self_device_time_total for one in averages) / 1e6
        lines = [f"  device busy {busy_s:.2f} s of {wall_s:.2f} s (traced)"]
        lines += [
            f"  {one.self_device_time_total / 1e6 / busy_s:6.1%} {one.self_device_time_total / 1e3:9.1f} ms "
            f"{one.count:>7} x {one.self_device_time_total / one.count:8.1f} us  {one.key[:90]}"
            for one in averages
            if one.self_device_time_total
        ]
        print("\n".join(lines[:24]), flush=True)
        if table is not None:
            table.write_text("\n".join(lines) + "\n")

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self._seconds[name] += time.perf_counter() - began_s
                self._calls[name] += 1

        return timed


class Watched:
    """A handle whose waiting is timed."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        self.wait = wait
