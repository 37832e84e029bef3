"""The worker of a device: a plan becomes one small copy and one launch; the tokens come back when somebody asks.

`submit` never waits for the device, except in steps that score prompts; for rows with a constraint it waits for their
masks, which threads compute while the step before runs. Steps run in the order of submission on one queue, so a step
may name tokens that the host has not seen yet.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import torch

from phloem.core.clock import Clock
from phloem.core.errors import RequestFailed
from phloem.core.plan import ALL_LOGITS, NO_LOGITS, SharedPrefix, StepPlan
from phloem.core.request import TokenLogprob
from phloem.core.result import StepResult
from phloem.graph.cost import StepLoad
from phloem.graph.lower.device_profile import ceilings
from phloem.graph.lower.program import Ceilings, StepTimes
from phloem.kernels.triton import packed
from phloem.memory.pool.kv import KvPool
from phloem.runtime.exec.constrained import ConstrainedRows
from phloem.runtime.exec.device_rows import NO_PAGES, NO_STARTS, NOT_REPORTED, Changes, IntArray, RowMirror
from phloem.runtime.exec.device_step import DeviceStep
from phloem.runtime.exec.pack_plan import Batch, pack_plan
from phloem.runtime.exec.queue import Fetched, Queue
from phloem.runtime.exec.sampling.logprobs import LOWEST_LOGPROB, prompt_logprobs

NOT_FINITE = "no token is possible: the logits are not finite, or all minus infinity"
STEP_ERRORS = (ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError)
"""What fails one step's requests and leaves the device usable, unless it is an error of the device itself."""

_log = logging.getLogger("phloem.exec")


@dataclass(slots=True)
class Scores:
    """What was found out about prompts before the step's tokens are known, by device row."""

    entries: list[tuple[int, tuple[TokenLogprob, ...]]] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Launch:
    """A step, or a part of one, under way."""

    batch: Batch
    token_ids: Fetched
    reports: Fetched | None
    scores: Scores


class Closes(Protocol):
    """Something that ends."""

    def close(self) -> None: ...


class Handle:
    """A step that was submitted."""

    def __init__(
        self, plan: StepPlan, launches: list[Launch], *, constrained: ConstrainedRows, clock: Clock, began_s: float
    ) -> None:
        self._plan = plan
        self._launches = launches
        self._constrained = constrained
        self._clock = clock
        self._began_s = began_s

    def wait(self) -> StepResult:
        """Block until the step is done. Errors of the device surface here."""
        tokens: dict[int, tuple[int, ...]] = {}
        logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        failed = {row: reason for launch in self._launches for row, reason in launch.scores.failed}
        for launch in self._launches:
            batch = launch.batch
            rows, lines = batch.rows[batch.draws].tolist(), batch.lines[batch.draws]
            for row, token in zip(rows, launch.token_ids.wait()[lines].tolist(), strict=True):
                if row in failed:
                    continue
                if token < 0:
                    failed[row] = self._constrained.fault(row) or NOT_FINITE
                else:
                    tokens[row] = self._constrained.took(row, token) if row in self._constrained else (token,)
            if launch.reports is not None:
                words = launch.reports.wait()[lines]
                wants = np.flatnonzero(batch.num_top != NOT_REPORTED).tolist()
                logprobs |= {
                    rows[index]: (read_report(words[index], tokens[rows[index]][0], int(batch.num_top[index])),)
                    for index in wants
                    if rows[index] in tokens
                }
        return StepResult(
            step=self._plan.step,
            rows=tuple(tokens),
            tokens=tuple(tokens.values()),
            logprobs=tuple(logprobs.get(row, ()) for row in tokens) if logprobs else (),
            prompt_logprobs=tuple(entry for launch in self._launches for entry in launch.scores.entries),
            failed=tuple(failed.items()),
            elapsed_s=self._clock.now_s() - self._began_s,
        )


def read_report(words: IntArray, token_id: int, num_top: int) -> TokenLogprob:
    """What kernels/triton/report.py says of one line: [REPORT_WORDS]."""
    floats = np.maximum(words.view(np.float32), LOWEST_LOGPROB).tolist()
    ids = words[packed.REPORT_IDS : packed.REPORT_IDS + num_top].tolist()
    top = tuple(zip(ids, floats[packed.REPORT_VALUES : packed.REPORT_VALUES + num_top]))
    return TokenLogprob(token_id, floats[packed.REPORT_LOGPROB], int(words[packed.REPORT_RANK]), top)


class CudaWorker:
    """Owns the mirror of the rows and applies plans in the order they come."""

    def __init__(
        self,
        *,
        step: DeviceStep,
        pool: KvPool,
        mirror: RowMirror,
        constrained: ConstrainedRows,
        queue: Queue,
        clock: Clock,
    ) -> None:
        self._step = step
        self._pool = pool
        self._mirror = mirror
        self._constrained = constrained
        self._queue = queue
        self._clock = clock
        self._closed_with: list[Closes] = []

    def closes(self, other: Closes) -> None:
        """`other` is of use as long as this worker is."""
        self._closed_with.append(other)

    @property
    def is_warm(self) -> bool:
        """Whether steps like the last are captured graphs: what traffic asks for now is."""
        return self._step.is_warm

    def prepare(self) -> bool:
        """Capture one kind of step that traffic asked for; some 20 ms."""
        with self._queue.on():
            try:
                return self._step.prepare()
            except torch.OutOfMemoryError:
                _log.warning("too little memory to capture steps; they run call by call from now on")
                self._step.shrink()
                return False

    def submit(self, plan: StepPlan) -> Handle:
        """Start one step."""
        began_s = self._clock.now_s()
        changes = self._mirror.apply(plan)
        for row in plan.ends:
            self._constrained.end(row)
        for start in plan.starts:
            if start.sampling.constraint is not None:
                self._constrained.start(start)
        launches: list[Launch] = []
        with self._queue.on():
            self._pool.copy_pages(plan.copies)
            if plan.rows:
                try:
                    launches = self._launch(plan, self._upload(plan, changes))
                except torch.AcceleratorError:  # nothing runs on this device any more
                    raise
                except STEP_ERRORS as error:
                    _log.exception("step %d failed; its requests fail, the engine goes on", plan.step)
                    raise RequestFailed(f"the step failed: {type(error).__name__}: {error}") from error
        return Handle(plan, launches, constrained=self._constrained, clock=self._clock, began_s=began_s)

    def profile(self, plan: StepPlan, load: StepLoad) -> StepTimes:
        """Compute a plan op by op and time each, then as a whole; nothing counts as computed, so it may be repeated."""
        changes = self._mirror.apply(plan)
        with self._queue.on():
            self._step.load_tokens(plan.starts)
            restarts = self._mirror.restarts(np.asarray(plan.rows, dtype=np.int32))
            step, batch = pack_plan(plan, self._mirror, Changes(restarts, changes.pages))
            return self._step.profile(step, batch.sizes, load)

    def ceilings(self) -> Ceilings:
        """What the device does at most, measured now."""
        with self._queue.on():
            return ceilings(self._pool.layers[0].device)

    def close(self) -> None:
        """Finish what was submitted."""
        for other in self._closed_with:
            other.close()
        self._queue.synchronize()
        self._constrained.close()

    def _upload(self, plan: StepPlan, changes: Changes) -> Changes:
        """What of a plan's rows does not fit into its packed form. Forced tokens become known here: their rows start
        anew with them."""
        self._step.load_tokens(plan.starts)
        listed = {start.row: self._mirror.listed(start) for start in plan.starts}
        self._step.load_listed({row: words for row, words in listed.items() if words is not None})
        drawing = [row for row, flag in zip(plan.rows, plan.logits, strict=True) if flag != NO_LOGITS]
        self._step.load_masks(self._constrained.masks(drawing))
        forced = self._constrained.take_forced()
        if not forced:
            return changes
        rows = np.asarray(list(forced), dtype=np.int32)
        self._step.load_forced(forced, self._mirror.known[rows])
        self._mirror.append(rows, np.asarray([len(tokens) for tokens in forced.values()], dtype=np.int32))
        return Changes(np.concatenate([changes.starts, self._mirror.restarts(rows)]), changes.pages)

    def _launch(self, plan: StepPlan, changes: Changes) -> list[Launch]:
        """Run a step; if the device has too little memory for it, run it in halves."""
        try:
            return [self._launch_whole(plan, changes)]
        except torch.OutOfMemoryError:
            parts = halves(plan)
            if parts is None:
                raise
            _log.warning(
                "step %d of %d tokens needs more memory than there is; halved", plan.step, sum(plan.num_tokens)
            )
        self._step.shrink()
        # what the failed launch did to the counts of its rows is undone by starting them anew
        again = Changes(self._mirror.restarts(np.asarray(plan.rows)), changes.pages)
        first, second = parts
        return [*self._launch(first, again), *self._launch(second, Changes(NO_STARTS, NO_PAGES))]

    def _launch_whole(self, plan: StepPlan, changes: Changes) -> Launch:
        mirror = self._mirror
        step, batch = pack_plan(plan, mirror, changes)
        scores_prompts = ALL_LOGITS in plan.logits
        output = self._step.run(step, batch.sizes, wants_logits=scores_prompts)
        mirror.advance(batch.rows, batch.counts)
        mirror.append(batch.rows[batch.draws])
        token_ids = self._queue.fetch(output.token_ids)
        reports = None if output.reports is None else self._queue.fetch(output.reports)
        scores = Scores()
        if scores_prompts:
            assert output.logits is not None
            self._queue.synchronize()
            self._score_prompts(plan, batch, output.logits, scores)
        return Launch(batch, token_ids, reports, scores)

    def _score_prompts(self, plan: StepPlan, batch: Batch, logits: torch.Tensor, scores: Scores) -> None:
        """Log-probabilities of the prompt tokens that follow the tokens just computed, of rows that want them."""
        wants = {row for row, flag in zip(plan.rows, plan.logits, strict=True) if flag == ALL_LOGITS}
        for index in range(len(batch.rows)):
            row, count = int(batch.rows[index]), int(batch.counts[index])
            if row not in wants:
                continue
            start = self._mirror.scored(row)
            assert start is not None, f"row {row} did not start with a prompt to score"
            last = int(self._mirror.computed[row])
            following = start.token_ids[last - count + 1 : min(last + 1, start.num_prompt_tokens)]
            num_top = start.sampling.prompt_logprobs or 0
            first_line = int(batch.lines[index]) - count + 1
            try:
                scores.entries.append((row, prompt_logprobs(logits, following, num_top, first_row=first_line)))
            except RequestFailed as error:
                scores.failed.append((row, error.message))


def halves(plan: StepPlan) -> tuple[StepPlan, StepPlan] | None:
    """The plan's computation in two parts, rows already up to date; None if it is a single token."""
    if len(plan.rows) > 1:
        middle = len(plan.rows) // 2
        return _part(plan, slice(0, middle)), _part(plan, slice(middle, None))
    (count,), (flag,) = plan.num_tokens, plan.logits
    if count == 1:
        return None
    early = flag if flag == ALL_LOGITS else NO_LOGITS
    whole = _part(plan, slice(0, 1))
    return (
        msgspec.structs.replace(whole, num_tokens=(count // 2,), logits=(early,)),
        msgspec.structs.replace(whole, num_tokens=(count - count // 2,)),
    )


def _part(plan: StepPlan, which: slice) -> StepPlan:
    rows = plan.rows[which]
    shared = [SharedPrefix(tuple(row for row in group.rows if row in rows), group.num_pages) for group in plan.shared]
    return StepPlan(
        step=plan.step,
        rows=rows,
        num_tokens=plan.num_tokens[which],
        logits=plan.logits[which],
        shared=tuple(group for group in shared if len(group.rows) > 1),
    )
