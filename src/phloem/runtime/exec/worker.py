"""The worker: apply a plan, fill the inputs, run the program, sample. One plan in, one result out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from phloem.core.clock import Clock
from phloem.core.errors import RequestFailed
from phloem.core.plan import ALL_LOGITS, NO_LOGITS, StepPlan
from phloem.core.request import TokenLogprob
from phloem.core.result import StepResult
from phloem.graph.capture.inputs import StepDims
from phloem.graph.cost import StepLoad
from phloem.graph.lower.program import StepProgram, StepTimes
from phloem.memory.pool.kv import KvPool
from phloem.runtime.exec.inputs import fill_inputs
from phloem.runtime.exec.rows import RowStore
from phloem.runtime.exec.sampling.logprobs import prompt_logprobs
from phloem.runtime.exec.sampling.sample import sample
from phloem.runtime.grammar.masks import MaskPool
from phloem.runtime.grammar.matcher import BitRow, Matcher

STEP_ERRORS = (ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError)
"""What a defect in one step may raise. Its requests fail; rows and pages are as the plan says, so others go on."""

MASK_PATIENCE_S, LONE_MASK_PATIENCE_S = 0.002, 0.05
"""How long a step with its logits waits for masks: beside rows that need none, and with nothing else to do."""

_log = logging.getLogger("phloem.exec")


class Handle:
    """A step that was submitted."""

    def __init__(self, future: Future[StepResult]) -> None:
        self._future = future

    def wait(self) -> StepResult:
        """Block until the step is done; raises what the step raised."""
        return self._future.result()


class Worker:
    """Owns the rows and applies plans in the order they come.

    With `overlap_depth` 0 a step runs inside `submit`; otherwise on a thread of its own, so that the caller plans the
    next one meanwhile. Steps never run at the same time: a plan sees what all plans before it did. A stage of a
    pipeline that is not the last `samples` nothing: it is told (`learn`) what the last one did.
    """

    def __init__(
        self,
        *,
        program: StepProgram,
        pool: KvPool,
        rows: RowStore,
        clock: Clock,
        overlap_depth: int,
        samples: bool = True,
        is_alone: bool = True,
        close_comm: Callable[[], None] = lambda: None,
    ) -> None:
        self._program = program
        self._pool = pool
        self._rows = rows
        self._clock = clock
        self._samples = samples
        self._is_alone = is_alone
        self._close_comm = close_comm
        self._masks = MaskPool()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="phloem-step") if overlap_depth else None

    @property
    def is_warm(self) -> bool:
        """Always: the first step is as fast as any."""
        return True

    def prepare(self) -> bool:
        """There is nothing to prepare."""
        return False

    def submit(self, plan: StepPlan) -> Handle:
        """Start one step."""
        if self._thread is not None:
            return Handle(self._thread.submit(self._step, plan))
        future: Future[StepResult] = Future()
        future.set_result(self._step(plan))  # raises here, as Handle.wait would
        return Handle(future)

    def learn(self, learned: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Tokens that another rank sampled for rows, in order, before the next plan."""
        for row, tokens in learned:
            self._rows.learn(row, tokens)

    def profile(self, plan: StepPlan, load: StepLoad) -> StepTimes:
        """Compute a plan op by op and time each; nothing is sampled, nor counted as computed, so it may be repeated."""
        self._rows.apply(plan)
        dims = fill_inputs(plan=plan, rows=self._rows, inputs=self._program.inputs)
        return StepTimes(self._program.profile(dims, load))

    def ceilings(self) -> None:
        """Not measured here: bench/machine.py does."""

    def close(self) -> None:
        """Finish what was submitted, then give everything back."""
        if self._thread is not None:
            self._thread.shutdown()
        self._masks.close()
        self._program.close()
        self._close_comm()

    def _step(self, plan: StepPlan) -> StepResult:
        began_s = self._clock.now_s()
        self._rows.apply(plan)
        self._pool.copy_pages(plan.copies)
        if not plan.rows:
            return StepResult(step=plan.step, elapsed_s=self._clock.now_s() - began_s)
        try:
            return self._compute(plan, began_s)
        except STEP_ERRORS as error:
            _log.exception("step %d failed; its requests fail, the engine goes on", plan.step)
            raise RequestFailed(f"the step failed: {type(error).__name__}: {error}") from error

    def _compute(self, plan: StepPlan, began_s: float) -> StepResult:
        """The rows of `plan` are up to date: run the model over them, then look at what came out."""
        dims = fill_inputs(plan=plan, rows=self._rows, inputs=self._program.inputs)
        if not self._samples:
            self._program.run(dims)
            self._rows.advance(np.asarray(plan.rows), np.asarray(plan.num_tokens))
            return StepResult(step=plan.step, elapsed_s=self._clock.now_s() - began_s)
        matchers = self._matchers(plan)
        self._masks.start(matchers.values())
        logits = self._program.run(dims)
        self._rows.advance(np.asarray(plan.rows), np.asarray(plan.num_tokens))
        masks = self._masks.take(matchers, patience_s=self._patience_s(len(plan.rows), len(matchers)))
        late = tuple(row for row in matchers if row not in masks)
        result = self._observe(plan, dims, logits, masks, late, began_s)
        self._rows.repeat(late)
        return result

    def _patience_s(self, num_rows: int, num_matchers: int) -> float | None:
        """How long masks are waited for. All ranks of a replica must see the same ones late, so there none is."""
        if not self._is_alone:
            return None
        return MASK_PATIENCE_S if num_rows > num_matchers else LONE_MASK_PATIENCE_S

    def _matchers(self, plan: StepPlan) -> dict[int, Matcher]:
        """Of the rows that will sample under a constraint."""
        found: dict[int, Matcher] = {}
        for row, count, flag in zip(plan.rows, plan.num_tokens, plan.logits, strict=True):
            matcher = self._rows.sampling(row).matcher
            samples = flag != NO_LOGITS and self._rows.computed[row] + count == self._rows.known[row]
            if matcher is not None and samples:
                found[row] = matcher
        return found

    def _observe(
        self,
        plan: StepPlan,
        dims: StepDims,
        logits: torch.Tensor,
        masks: dict[int, BitRow],
        late: tuple[int, ...],
        began_s: float,
    ) -> StepResult:
        """Turn logits into a result: score prompts, sample, and let the row store know the new tokens. Rows in `late`
        do not sample."""
        wanting, scored, failed = self._read_rows(plan, logits)
        sampling = [(row, line) for row, line in wanting if row not in late]
        rows = [row for row, _ in sampling]
        drawn = sample(
            logits,
            [self._rows.sampling(row) for row in rows],
            rows=[index for _, index in sampling],
            argmax=self._program.argmax(dims),
            masks={index: masks[row] for row, index in sampling if row in masks},
        )
        bad = {index for index, _ in drawn.failed}
        failed += [(rows[index], reason) for index, reason in drawn.failed]
        good = [index for index in range(len(rows)) if index not in bad]
        tokens = tuple(self._rows.append(rows[index], drawn.tokens[index]) for index in good)
        return StepResult(
            step=plan.step,
            rows=tuple(rows[index] for index in good),
            tokens=tokens,
            logprobs=tuple(drawn.logprobs[index] for index in good) if drawn.logprobs else (),
            prompt_logprobs=tuple(scored),
            failed=tuple(failed),
            elapsed_s=self._clock.now_s() - began_s,
            late=late,
        )

    def _read_rows(
        self, plan: StepPlan, logits: torch.Tensor
    ) -> tuple[list[tuple[int, int]], list[tuple[int, tuple[TokenLogprob, ...]]], list[tuple[int, str]]]:
        """Rows that sample with their line of `logits`, rows that score with their entries, failures with a reason."""
        sampling: list[tuple[int, int]] = []
        scored: list[tuple[int, tuple[TokenLogprob, ...]]] = []
        failed: list[tuple[int, str]] = []
        line = 0
        for row, count, flag in zip(plan.rows, plan.num_tokens, plan.logits, strict=True):
            if flag == NO_LOGITS:
                continue
            num_lines = count if flag == ALL_LOGITS else 1
            if flag == ALL_LOGITS:
                try:
                    scored.append((row, self._score_prompt(row, count, logits, line)))
                except RequestFailed as error:
                    failed.append((row, error.message))
            if self._rows.computed[row] == self._rows.known[row] and row not in dict(failed):
                sampling.append((row, line + num_lines - 1))
            line += num_lines
        return sampling, scored, failed

    def _score_prompt(self, row: int, count: int, logits: torch.Tensor, line: int) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of the prompt tokens that follow the `count` tokens just computed."""
        num_top = self._rows.sampling(row).params.prompt_logprobs or 0
        last = int(self._rows.computed[row])
        following = self._rows.tokens[row, last - count + 1 : min(last + 1, int(self._rows.num_prompt[row]))]
        return prompt_logprobs(logits, following.tolist(), num_top, first_row=line)
