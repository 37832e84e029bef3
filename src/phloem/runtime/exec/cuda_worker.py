"""The worker of a device: a plan becomes one small copy and one launch; the tokens come back when somebody asks.

`submit` never waits for the device, except for rows whose tokens are chosen on the host (`needs_host`). Steps run in
the order of submission on one queue, so a step may name tokens that the host has not seen yet.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch

from phloem.core.clock import Clock
from phloem.core.errors import RequestFailed
from phloem.core.plan import ALL_LOGITS, NO_LOGITS, SharedPrefix, StepPlan
from phloem.core.request import TokenLogprob
from phloem.core.result import StepResult
from phloem.memory.pool.kv import KvPool
from phloem.runtime.exec.device_rows import NO_PAGES, NO_STARTS, Changes, RowMirror
from phloem.runtime.exec.device_step import DeviceStep
from phloem.runtime.exec.pack_plan import Batch, pack_plan
from phloem.runtime.exec.queue import Fetched, Queue
from phloem.runtime.exec.sampling.logprobs import prompt_logprobs
from phloem.runtime.exec.sampling.sample import sample

NOT_FINITE = "the logits are not finite"
STEP_ERRORS = (ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError)
"""What fails one step's requests and leaves the device usable, unless it is an error of the device itself."""

_log = logging.getLogger("phloem.exec")


@dataclass(slots=True)
class HostChoices:
    """What was decided on the host about rows of one launch, by device row."""

    tokens: dict[int, tuple[int, ...]] = field(default_factory=dict)
    logprobs: dict[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)
    scored: list[tuple[int, tuple[TokenLogprob, ...]]] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Launch:
    """A step, or a part of one, under way."""

    batch: Batch
    token_ids: Fetched
    chosen: HostChoices | None


class Handle:
    """A step that was submitted."""

    def __init__(self, plan: StepPlan, launches: list[Launch], *, clock: Clock, began_s: float) -> None:
        self._plan = plan
        self._launches = launches
        self._clock = clock
        self._began_s = began_s

    def wait(self) -> StepResult:
        """Block until the step is done. Errors of the device surface here."""
        tokens: dict[int, tuple[int, ...]] = {}
        logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        scored: list[tuple[int, tuple[TokenLogprob, ...]]] = []
        failed: list[tuple[int, str]] = []
        for launch in self._launches:
            batch = launch.batch
            drawn = launch.token_ids.wait()[batch.lines[batch.draws]]
            tokens.update(zip(batch.rows[batch.draws].tolist(), ((token,) for token in drawn.tolist())))
            if drawn.size and drawn.min() < 0:
                failed += [(row, NOT_FINITE) for row, (token, *_) in tokens.items() if token < 0]
                tokens = {row: each for row, each in tokens.items() if each[0] >= 0}
            if (chosen := launch.chosen) is not None:
                tokens |= chosen.tokens
                logprobs |= chosen.logprobs
                scored += chosen.scored
                failed += chosen.failed
        rows = tuple(tokens)
        if any(launch.chosen for launch in self._launches):
            rows = tuple(row for row in self._plan.rows if row in tokens)
        return StepResult(
            step=self._plan.step,
            rows=rows,
            tokens=tuple(tokens[row] for row in rows),
            logprobs=tuple(logprobs.get(row, ()) for row in rows) if any(logprobs.values()) else (),
            prompt_logprobs=tuple(scored),
            failed=tuple(failed),
            elapsed_s=self._clock.now_s() - self._began_s,
        )


class CudaWorker:
    """Owns the mirror of the rows and applies plans in the order they come."""

    def __init__(self, *, step: DeviceStep, pool: KvPool, mirror: RowMirror, queue: Queue, clock: Clock) -> None:
        self._step = step
        self._pool = pool
        self._mirror = mirror
        self._queue = queue
        self._clock = clock

    @property
    def is_warm(self) -> bool:
        """Whether the last step was a captured graph: what traffic asks for now is."""
        return self._step.is_warm

    def submit(self, plan: StepPlan) -> Handle:
        """Start one step."""
        began_s = self._clock.now_s()
        changes = self._mirror.apply(plan)
        with self._queue.on():
            self._pool.copy_pages(plan.copies)
            if not plan.rows:
                return Handle(plan, [], clock=self._clock, began_s=began_s)
            try:
                self._step.load_tokens(plan.starts)
                launches = self._launch(plan, changes)
            except torch.AcceleratorError:  # nothing runs on this device any more
                raise
            except STEP_ERRORS as error:
                _log.exception("step %d failed; its requests fail, the engine goes on", plan.step)
                raise RequestFailed(f"the step failed: {type(error).__name__}: {error}") from error
        return Handle(plan, launches, clock=self._clock, began_s=began_s)

    def close(self) -> None:
        """Finish what was submitted."""
        self._queue.synchronize()

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
        packed, batch = pack_plan(plan, mirror, changes)
        num_sampling = int(np.count_nonzero(batch.samples))
        wants_logits = num_sampling > len(batch.draws) or ALL_LOGITS in plan.logits
        output = self._step.run(packed, batch.sizes, wants_logits=wants_logits)
        mirror.advance(batch.rows, batch.counts)
        mirror.append(batch.rows[batch.draws])
        fetched = self._queue.fetch(output.token_ids)
        chosen = None
        if wants_logits:
            assert output.logits is not None
            chosen = self._choose(plan, batch, output.logits)
        return Launch(batch, fetched, chosen)

    def _choose(self, plan: StepPlan, batch: Batch, logits: torch.Tensor) -> HostChoices:
        """Score prompts and choose tokens on the host, and tell the device. Waits for it."""
        self._queue.synchronize()
        chosen = HostChoices()
        self._score_prompts(plan, batch, logits, chosen)
        has_failed = {row for row, _ in chosen.failed}
        at = [index for index in np.flatnonzero(batch.samples).tolist() if int(batch.rows[index]) not in has_failed]
        hosts = [(index, host) for index in at if (host := self._mirror.host_row(int(batch.rows[index]))) is not None]
        drawn = sample(logits, [host.state for _, host in hosts], rows=[int(batch.lines[index]) for index, _ in hosts])
        bad = dict(drawn.failed)
        for place, (index, host) in enumerate(hosts):
            row = int(batch.rows[index])
            if place in bad:
                chosen.failed.append((row, bad[place]))
                continue
            host.state.append(drawn.tokens[place])
            chosen.tokens[row] = (drawn.tokens[place], *host.state.force())
            if drawn.logprobs:
                chosen.logprobs[row] = drawn.logprobs[place]
        for place in range(max(map(len, chosen.tokens.values()), default=0)):
            rows = [row for row, tokens in chosen.tokens.items() if len(tokens) > place]
            self._step.append(rows, [chosen.tokens[row][place] for row in rows])
            self._mirror.append(np.asarray(rows, dtype=np.int32))
        return chosen

    def _score_prompts(self, plan: StepPlan, batch: Batch, logits: torch.Tensor, chosen: HostChoices) -> None:
        """Log-probabilities of the prompt tokens that follow the tokens just computed, of rows that want them."""
        wants = {row for row, flag in zip(plan.rows, plan.logits, strict=True) if flag == ALL_LOGITS}
        for index in range(len(batch.rows)):
            row, count = int(batch.rows[index]), int(batch.counts[index])
            if row not in wants:
                continue
            host = self._mirror.host_row(row)
            assert host is not None, f"row {row} scores its prompt on the host"
            last = int(self._mirror.computed[row])
            following = host.prompt[last - count + 1 : last + 1]
            num_top = host.state.params.prompt_logprobs or 0
            first_line = int(batch.lines[index]) - count + 1
            try:
                chosen.scored.append((row, prompt_logprobs(logits, following, num_top, first_row=first_line)))
            except RequestFailed as error:
                chosen.failed.append((row, error.message))


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
