"""A replica of several processes as its loop sees it: one worker.

The deciding process is rank 0. `GroupWorker` hands every plan to the other ranks as bytes and applies it here as they
do; nobody but the scheduler decides. With a pipeline the last stage samples: its results come back, and what they
taught the scheduler travels on with the next plan to the stages that did not see it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from phloem.core.errors import RequestFailed
from phloem.core.plan import StepPlan
from phloem.core.result import StepResult
from phloem.parallel.comm import STEP_TIMEOUT_S, RankLost
from phloem.parallel.mailroom import BEAT_S, DeciderPost, Observed, Quit, RankPost, RankStep
from phloem.parallel.mesh import Place
from phloem.parallel.ring import RingFull
from phloem.runtime.loop import Handle

RESULT_TIMEOUT_S = 60.0
"""A pipeline may be full of long steps; that a rank died is known much earlier."""
Learned = tuple[tuple[int, tuple[int, ...]], ...]


class RankWorker(Protocol):
    """One rank's own worker: a loop's, which can also be told what others sampled."""

    @property
    def is_warm(self) -> bool: ...
    def prepare(self) -> bool: ...
    def submit(self, plan: StepPlan) -> Handle: ...
    def learn(self, learned: Learned) -> None: ...
    def close(self) -> None: ...


class GroupWorker:
    """Rank 0's worker and the post to the others. Errors are those of `loop.Worker`; RankLost when one is gone."""

    def __init__(self, *, own: RankWorker, post: DeciderPost, samples_here: bool) -> None:
        self._own = own
        self._post = post
        self._samples_here = samples_here
        self._results: dict[int, StepResult] = {}
        self._learned: list[tuple[int, tuple[int, ...]]] = []
        self._is_closed = False

    @property
    def is_warm(self) -> bool:
        return self._own.is_warm

    def prepare(self) -> bool:
        """There is nothing to prepare: the ranks of a group run call by call."""
        return False

    def submit(self, plan: StepPlan) -> Handle:
        """Send the plan to every rank, then start it here."""
        learned = tuple(self._learned)
        self._learned.clear()
        self._expect_all()
        try:
            self._post.send(RankStep(plan, learned), timeout_s=STEP_TIMEOUT_S)
        except RingFull as error:
            raise RankLost(str(error)) from error
        if not self._samples_here:
            self._own.learn(learned)
        try:
            own = self._own.submit(plan)
        except RankLost as error:  # what a collective met; the post may know more
            raise RankLost(self._post.lost or error.message) from error
        return own if self._samples_here else _Remote(self, plan.step, own, has_rows=bool(plan.rows))

    def close(self) -> None:
        """Tell the others, then give everything back here. Closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(RingFull):  # who does not read is ended by its maker
            self._post.send(Quit(), timeout_s=BEAT_S)
        self._own.close()
        self._post.close()

    def result_of(self, step: int) -> StepResult:
        """What the last stage saw of a step; waits for it."""
        while step not in self._results:
            result = self._post.next_result(timeout_s=RESULT_TIMEOUT_S)
            self._expect_all()
            if result is None:
                raise RankLost(f"no result of step {step} within {RESULT_TIMEOUT_S:g} s")
            self._results[result.step] = result
            self._learned += zip(result.rows, result.tokens, strict=True)
        return self._results.pop(step)

    def _expect_all(self) -> None:
        if self._post.lost is not None:
            raise RankLost(self._post.lost)


@dataclass(frozen=True)
class _Remote:
    """A step whose tokens another rank samples."""

    group: GroupWorker
    step: int
    own: Handle
    has_rows: bool

    def wait(self) -> StepResult:
        """As `loop.Handle`."""
        own = self.own.wait()
        return self.group.result_of(self.step) if self.has_rows else own


def serve_rank(worker: RankWorker, post: RankPost, say: Callable[[Observed], None], place: Place) -> None:
    """A rank's life: apply plans in order until Quit. Results travel back from the last stage if it is not rank 0's."""
    samples = place.pipe.is_last
    reports = samples and place.tensor.is_first and not place.pipe.is_first
    while True:
        message = post.receive(timeout_s=BEAT_S)
        if isinstance(message, Quit):
            return
        if isinstance(message, RankStep):
            if not samples:
                worker.learn(message.learned)
            try:
                result = worker.submit(message.plan).wait()
            except RequestFailed:
                if reports:
                    raise
                continue  # every rank meets it, and rank 0 says so
            if reports and message.plan.rows:
                say(Observed(result))
