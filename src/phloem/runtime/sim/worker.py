"""A worker that computes nothing: it answers with fresh tokens after the virtual seconds that the cost model names.

A pipeline of `num_stages` starts a step when its first stage is free and ends it when the last is done.
"""

from __future__ import annotations

from phloem.core.clock import ManualClock
from phloem.core.plan import StepPlan
from phloem.core.result import StepResult
from phloem.runtime.sim.cost import StepCost
from phloem.runtime.sim.rows import ContextRows

ANY_TOKEN = 1 << 30
"""What is generated shares no prefix with what anybody asks."""


class SimulatedHandle:
    """A step that is done at `ready_s`; waiting moves the replica's clock there."""

    def __init__(self, result: StepResult, *, ready_s: float, clock: ManualClock) -> None:
        self._result, self._ready_s, self._clock = result, ready_s, clock

    def wait(self) -> StepResult:
        """The result."""
        self._clock.advance(max(0.0, self._ready_s - self._clock.now_s()))
        return self._result


class SimulatedWorker:
    """A `loop.Worker` on a replica's own clock. `cost` is of one stage."""

    is_warm = True

    def __init__(self, *, cost: StepCost, clock: ManualClock, num_stages: int = 1) -> None:
        self._cost, self._clock, self._num_stages = cost, clock, num_stages
        self._rows = ContextRows()
        self._free_s = 0.0
        self._num_sampled = 0
        self.busy_s = 0.0
        self.num_computed_tokens = 0

    def prepare(self) -> bool:
        """There is nothing to prepare."""
        return False

    def submit(self, plan: StepPlan) -> SimulatedHandle:
        """Start a step as soon as the first stage is free."""
        shape = self._rows.apply(plan)
        stage_s = self._cost.step_s(shape)
        began_s = max(self._clock.now_s(), self._free_s)
        self._free_s = began_s + stage_s
        self.busy_s += stage_s
        self.num_computed_tokens += shape.num_tokens
        rows = self._rows.sampling(plan)
        first, self._num_sampled = self._num_sampled, self._num_sampled + len(rows)
        tokens = tuple((ANY_TOKEN + (first + index) % ANY_TOKEN,) for index in range(len(rows)))
        for row in rows:
            self._rows.learn(row, 1)
        result = StepResult(step=plan.step, rows=rows, tokens=tokens, elapsed_s=stage_s)
        return SimulatedHandle(result, ready_s=began_s + self._num_stages * stage_s, clock=self._clock)

    def close(self) -> None:
        """Nothing to give back."""
