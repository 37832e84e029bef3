"""How much context each row of a plan has: what the cost of a step is counted from."""

from __future__ import annotations

from phloem.core.plan import LAST_LOGITS, StepPlan
from phloem.runtime.sim.cost import StepShape


class ContextRows:
    """A row store of counts. Plans are applied in order; `learn` says that a row sampled."""

    def __init__(self) -> None:
        self._computed: dict[int, int] = {}
        self._known: dict[int, int] = {}

    def apply(self, plan: StepPlan) -> StepShape:
        """The step's counts."""
        for row in plan.ends:
            del self._computed[row], self._known[row]
        for start in plan.starts:
            self._computed[start.row], self._known[start.row] = start.num_computed, len(start.token_ids)
        context = attended = 0
        for row, num_new in zip(plan.rows, plan.num_tokens, strict=True):
            before = self._computed[row]
            self._computed[row] = before + num_new
            context += before + num_new
            attended += num_new * before + num_new * (num_new + 1) // 2
        return StepShape(sum(plan.num_tokens), len(plan.rows), context, attended)

    def sampling(self, plan: StepPlan) -> tuple[int, ...]:
        """The rows of the applied plan that sample."""
        return tuple(
            row
            for row, logits in zip(plan.rows, plan.logits, strict=True)
            if logits >= LAST_LOGITS and self._computed[row] >= self._known[row]
        )

    def learn(self, row: int, num_tokens: int) -> None:
        """It appended so many; a row that has ended meanwhile is passed over."""
        if row in self._known:
            self._known[row] += num_tokens
