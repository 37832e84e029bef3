"""What a step costs in seconds, from four counts of its plan: a linear model, fitted to measured steps or stated for a
machine.

    step_s = fixed + max(weights, tokens x token) + rows x row + context x context + attended x attended

`weights` is the time to read the weights once: a step of few tokens waits for memory, one of many for arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np


class StepShape(NamedTuple):
    """Counts of one step: `context` is the known tokens of its rows together (the KV cache read), `attended` the
    pairs of a new token and one it sees."""

    num_tokens: int
    num_rows: int
    context: int
    attended: int


class Sample(NamedTuple):
    """A step that was measured."""

    shape: StepShape
    seconds: float


class StepCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a unit; see the module's first lines."""

    fixed_s: float = 0.0
    weights_s: float = 0.0
    token_s: float = 0.0
    row_s: float = 0.0
    context_s: float = 0.0
    attended_s: float = 0.0

    def step_s(self, shape: StepShape) -> float:
        """Seconds of one step; an empty one costs nothing."""
        if not shape.num_tokens:
            return 0.0
        return (
            self.fixed_s
            + max(self.weights_s, shape.num_tokens * self.token_s)
            + shape.num_rows * self.row_s
            + shape.context * self.context_s
            + shape.attended * self.attended_s
        )


def fit(samples: Sequence[Sample]) -> StepCost:
    """The coefficients that explain the samples best, none of them negative, with relative errors weighed alike: a step
    of 10 ms matters as much as one of a second. ValueError for fewer samples than coefficients."""
    names = ("fixed_s", "token_s", "row_s", "context_s", "attended_s")
    if len(samples) < len(names):
        raise ValueError(f"{len(samples)} steps are too few to fit {len(names)} coefficients")
    counts = np.array([(1, *sample.shape) for sample in samples], float)
    weight = 1 / np.array([sample.seconds for sample in samples])
    solution = _least_squares(counts * weight[:, None], np.ones(len(samples)))
    return StepCost(**dict(zip(names, solution.tolist(), strict=True)))


def relative_error(cost: StepCost, samples: Sequence[Sample]) -> float:
    """Mean of |predicted - measured| / measured."""
    return float(np.mean([abs(cost.step_s(shape) / seconds - 1) for shape, seconds in samples]))


def _least_squares(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares without negative coefficients: drop the most negative until none is left (few, so this is exact
    enough; columns are scaled to one length first)."""
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1
    kept = list(range(rows.shape[1]))
    while kept:
        part = np.linalg.lstsq((rows / scale)[:, kept], target, rcond=None)[0]
        if part.min() >= 0:
            solution = np.zeros(rows.shape[1])
            solution[kept] = part / scale[kept]
            return solution
        kept.pop(int(np.argmin(part)))
    return np.zeros(rows.shape[1])
