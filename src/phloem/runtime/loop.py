"""The engine's loop: admit -> plan -> submit -> commit -> emit, with up to `depth` steps planned ahead of results."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec

from phloem.core.clock import Clock
from phloem.core.errors import EngineDead, RequestFailed
from phloem.core.plan import StepPlan
from phloem.core.result import StepResult
from phloem.core.wire import Command, Dead, Event, Stats

STATS_INTERVAL_S = 0.2
CHECK_AFTER_IDLE_S = 1.0
MAX_EMPTY_TURNS = 8


class Handle(Protocol):
    """A step under way."""

    def wait(self) -> StepResult:
        """Block until it is done. RequestFailed: no result, but the worker can go on; any other error: it cannot."""


class Worker(Protocol):
    """What applies plans, in the order they are submitted. Errors as in `Handle.wait`; whoever raises RequestFailed has
    brought its rows up to date (ends, starts, new pages) first."""

    @property
    def is_warm(self) -> bool:
        """False while steps are slower than they will be: what recurs is not captured yet."""

    def prepare(self) -> bool:
        """Do a little of what makes later steps faster, for some milliseconds; False if there is nothing. Asked for
        when nothing else is to be done."""

    def submit(self, plan: StepPlan) -> Handle:
        """Launch a step and return at once."""

    def close(self) -> None:
        """Give everything back."""


class Decider(Protocol):
    """The scheduler, or something around it."""

    @property
    def has_work(self) -> bool: ...
    @property
    def is_drained(self) -> bool: ...
    def admit(self, command: Command, now_s: float) -> list[Event]: ...
    def plan(self, now_s: float) -> StepPlan: ...
    def commit(self, plan: StepPlan, result: StepResult, now_s: float) -> list[Event]: ...
    def fail(self, plan: StepPlan, message: str) -> list[Event]: ...
    def fail_all(self, code: str, message: str) -> list[Event]: ...
    def stats(self, now_s: float) -> Stats: ...
    def check(self) -> None: ...


class Inbox(Protocol):
    """Where commands come from."""

    def poll(self, timeout_s: float | None) -> list[Command]:
        """All that have arrived; waits for the first at most `timeout_s`, or for ever (None)."""


class Outbox(Protocol):
    """Where events go."""

    def send(self, events: list[Event]) -> None:
        """Deliver them in order; does not block."""


class Loop:
    """Runs one replica. Depth 0 waits for each step; depth 1 plans the next while one runs. One code path."""

    def __init__(
        self, *, scheduler: Decider, worker: Worker, inbox: Inbox, outbox: Outbox, clock: Clock, depth: int = 0
    ) -> None:
        self._scheduler = scheduler
        self._worker = worker
        self._inbox = inbox
        self._outbox = outbox
        self._clock = clock
        self._depth = depth
        self._in_flight: deque[tuple[StepPlan, Handle]] = deque()
        self._stats_sent_s = float("-inf")
        self._num_empty_turns = 0
        self._is_checked = True

    def run(self) -> None:
        """Serve until shutdown is asked for and done. Should the engine die, every open request fails first."""
        try:
            while not self._scheduler.is_drained:
                self.turn(None if self._is_checked else CHECK_AFTER_IDLE_S)
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            failed = self._scheduler.fail_all(EngineDead.code, message)
            self._outbox.send([*failed, Dead(EngineDead.code, message)])
            raise
        finally:
            self._worker.close()

    def turn(self, timeout_s: float | None = 0.0) -> bool:
        """One round. Waits for commands, at most `timeout_s`, only if nothing is to be done. False at idle."""
        scheduler = self._scheduler
        is_busy = scheduler.has_work
        events: list[Event] = []
        for command in self._inbox.poll(0.0 if is_busy or self._prepare() else timeout_s):
            events += scheduler.admit(command, self._clock.now_s())
        if scheduler.has_work:
            events += self._step()
        elif not is_busy and not self._is_checked:
            scheduler.check()
            self._is_checked = True
        is_done = is_busy and not scheduler.has_work
        self._emit(events, is_due=is_done)
        return is_busy or scheduler.has_work

    def _prepare(self) -> bool:
        """Let the worker use an idle moment, and say what it is like now."""
        has_prepared = self._worker.prepare()
        if has_prepared:
            self._emit([], is_due=True)
        return has_prepared

    def _step(self) -> list[Event]:
        """Submit one plan if there is anything to plan, then take in the oldest result if enough is under way."""
        self._is_checked = False
        events: list[Event] = []
        plan = self._scheduler.plan(self._clock.now_s())
        if not plan.is_empty:
            try:
                self._in_flight.append((plan, self._worker.submit(plan)))
            except RequestFailed as error:
                events += self._scheduler.fail(plan, error.message)
        is_ahead = not plan.is_empty and len(self._in_flight) <= self._depth
        if self._in_flight and not is_ahead:
            events += self._commit(*self._in_flight.popleft())
        elif plan.is_empty:
            self._note_empty_turn()
            return events
        self._num_empty_turns = 0
        return events

    def _commit(self, plan: StepPlan, handle: Handle) -> list[Event]:
        try:
            result = handle.wait()
        except RequestFailed as error:
            return self._scheduler.fail(plan, error.message)
        return self._scheduler.commit(plan, result, self._clock.now_s())

    def _note_empty_turn(self) -> None:
        """Nothing planned and nothing under way: room was just made for the next plan, or the scheduler is stuck."""
        self._num_empty_turns += 1
        assert self._num_empty_turns < MAX_EMPTY_TURNS, "requests are open, but the scheduler plans nothing"

    def _emit(self, events: list[Event], *, is_due: bool) -> None:
        """Send events, and the state of things every so often while there are any, and once at the end (`is_due`)."""
        now_s = self._clock.now_s()
        if is_due or (events and now_s - self._stats_sent_s >= STATS_INTERVAL_S):
            self._stats_sent_s = now_s
            events.append(msgspec.structs.replace(self._scheduler.stats(now_s), is_warm=self._worker.is_warm))
        if events:
            self._outbox.send(events)
