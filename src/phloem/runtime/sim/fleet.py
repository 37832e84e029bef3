"""Replicas under one virtual time: each is the real scheduler in the real loop, on a clock of its own.

arrivals in order --> router --> replica 0: Loop(Scheduler, SimulatedWorker)    whichever clock is behind goes next
                                 replica 1 ...
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from phloem.core.clock import ManualClock
from phloem.core.request import SamplingParams
from phloem.core.wire import Command, Event, Failed, Finished, Submit, Tokens
from phloem.parallel.replicas import Assignment, Load, Prompt, Routing
from phloem.runtime.loop import Loop
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler
from phloem.runtime.sim.cost import StepCost
from phloem.runtime.sim.trace import Arrival
from phloem.runtime.sim.worker import SimulatedWorker


class Outcome(msgspec.Struct, frozen=True):
    """What became of a request. `token_s` are the times its tokens were known; empty where it was refused."""

    arrival: Arrival
    replica: int
    num_cached: int
    token_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        """Arrival to first token."""
        return self.token_s[0] - self.arrival.at_s


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: how its scheduler behaves, what a stage's step costs, how many stages and steps ahead there are.
    `front_s` passes between a request's arrival and the engine: HTTP and text."""

    settings: SchedulerSettings
    cost: StepCost
    num_stages: int = 1
    depth: int = 0
    front_s: float = 0.0


class SimulatedReplica:
    """Inbox, outbox and loop of one replica; `now_s` is how far it has come."""

    def __init__(self, machine: Machine) -> None:
        self._clock = ManualClock()
        self._front_s = machine.front_s
        self.page_size = machine.settings.page_size
        self.worker = SimulatedWorker(cost=machine.cost, clock=self._clock, num_stages=machine.num_stages)
        self._loop = Loop(
            scheduler=make_scheduler(machine.settings),
            worker=self.worker,
            inbox=self,
            outbox=self,
            clock=self._clock,
            depth=max(machine.depth, machine.num_stages - 1),
        )
        self._commands: list[Command] = []
        self._open: dict[str, tuple[Arrival, list[float]]] = {}
        self.outcomes: list[tuple[float, Arrival, int, list[float]]] = []  # (ended_s, request, cached, token times)

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        return self._clock.now_s()

    @property
    def has_work(self) -> bool:
        """Whether a turn would do something."""
        return bool(self._open)

    def submit(self, arrival: Arrival, prompt: tuple[int, ...]) -> None:
        """A request arrives; an idle replica's clock jumps there."""
        if not self.has_work:
            self._clock.advance(max(0.0, arrival.at_s + self._front_s - self.now_s))
        name = str(arrival.serial)
        sampling = SamplingParams(max_tokens=arrival.num_output, ignore_eos=True, temperature=0.0)
        self._open[name] = arrival, []
        self._commands.append(Submit(name, prompt, sampling))

    def turn(self) -> None:
        """One round of the loop: the clock moves by a step."""
        self._loop.turn()

    def poll(self, timeout_s: float | None) -> list[Command]:
        """As `loop.Inbox`: what has arrived."""
        commands, self._commands = self._commands, []
        return commands

    def send(self, events: list[Event]) -> None:
        """As `loop.Outbox`."""
        for event in events:
            match event:
                case Tokens(name, _, token_ids):
                    self._open[name][1].extend([self.now_s] * len(token_ids))
                case Finished(name, _, num_cached):
                    arrival, times = self._open.pop(name)
                    self.outcomes.append((self.now_s, arrival, num_cached, times))
                case Failed(name):
                    arrival, _ = self._open.pop(name)
                    self.outcomes.append((self.now_s, arrival, 0, []))


class Fleet:
    """The replicas, and what the router knows of them: it hears of a token or an end no earlier than it happened."""

    def __init__(self, machines: Iterable[Machine], routing: Routing) -> None:
        self._replicas = [SimulatedReplica(machine) for machine in machines]
        self._page_sizes = [replica.page_size for replica in self._replicas]
        self._loads = [Load(str(index)) for index in range(len(self._replicas))]
        self._routing = routing
        self._behind: list[tuple[float, int]] = []  # replicas with work, by their clocks
        self._news: list[tuple[float, int, bool]] = []  # (when, serial, is over) that the router has not heard
        self._assigned: dict[int, Assignment] = {}
        self._outcomes: list[tuple[float, Outcome]] = []

    def run(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Every request's fate, in the order of their ends."""
        for arrival in arrivals:
            self._advance(arrival.at_s)
            self._tell_router(arrival.at_s)
            self._route(arrival)
        self._advance(float("inf"))
        return [outcome for _, outcome in sorted(self._outcomes, key=lambda pair: pair[0])]

    def _route(self, arrival: Arrival) -> None:
        tokens = arrival.prompt()
        prompt = Prompt(
            np.asarray(tokens, ">u4").tobytes(), max_tokens=arrival.num_output, page_size=self._page_sizes[0]
        )
        assignment = self._assigned[arrival.serial] = self._routing.assign(prompt, self._loads)
        index = int(assignment.load.name)
        was_idle = not self._replicas[index].has_work
        self._replicas[index].submit(arrival, tokens)
        if was_idle:
            heapq.heappush(self._behind, (self._replicas[index].now_s, index))

    def _advance(self, until_s: float) -> None:
        """Turn whichever replica is behind until all are past `until_s` or idle."""
        while self._behind and self._behind[0][0] < until_s:
            _, index = heapq.heappop(self._behind)
            replica = self._replicas[index]
            replica.turn()
            for ended_s, arrival, num_cached, times in replica.outcomes:
                self._outcomes.append((ended_s, Outcome(arrival, index, num_cached, tuple(times))))
                for news_s, is_over in ((times[0] if times else ended_s, False), (ended_s, True)):
                    heapq.heappush(self._news, (news_s, arrival.serial, is_over))
            replica.outcomes.clear()
            if replica.has_work:
                heapq.heappush(self._behind, (replica.now_s, index))

    def _tell_router(self, now_s: float) -> None:
        while self._news and self._news[0][0] <= now_s:
            _, serial, is_over = heapq.heappop(self._news)
            if is_over:
                self._assigned.pop(serial).end()
            else:
                self._assigned[serial].answered()
