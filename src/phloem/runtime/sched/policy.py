"""Who goes first among the waiting, and who gives way when pages run out. A policy sees plain values, and decides
nothing else: memory, budget and deferral are the scheduler's."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

AGEING_TOKENS_PER_S = 1000.0

PolicyName = Literal["fcfs", "lpm", "priority"]


class Candidate(NamedTuple):
    """What a policy may know of a sequence. `serial` counts arrivals; `num_cached` is its cached prefix in tokens."""

    serial: int
    priority: int
    arrived_s: float
    num_cached: int = 0


class Policy(Protocol):
    """`ranks_by_cache`: `rank` wants `num_cached`. `defers`: a prompt waits while its prefix is just being computed."""

    ranks_by_cache: bool
    defers: bool

    def rank(self, candidate: Candidate) -> tuple[float, ...]:
        """Sort key among the waiting; the smallest goes first."""

    def standing(self, candidate: Candidate) -> tuple[float, ...]:
        """Sort key among the running; the largest gives way first."""

    def may_displace(self, waiting: Candidate, running: Candidate) -> bool:
        """Whether a waiting sequence that finds no place may take that of a running one."""


class FirstComeFirstServed:
    """In order of arrival; the latest arrival gives way."""

    ranks_by_cache = False
    defers = False

    def rank(self, candidate: Candidate) -> tuple[float, ...]:
        """Order of arrival."""
        return (candidate.serial,)

    def standing(self, candidate: Candidate) -> tuple[float, ...]:
        """Order of arrival."""
        return (candidate.serial,)

    def may_displace(self, waiting: Candidate, running: Candidate) -> bool:
        """Never: who runs has arrived earlier, or would be displaced back."""
        return False


class LongestPrefix(FirstComeFirstServed):
    """The longest cached prefix first. Waiting counts as cached tokens do, `ageing` of them a second, so that a request
    is only ever overtaken by those that arrive within (longest prompt / ageing) seconds after it: nothing starves."""

    ranks_by_cache = True
    defers = True

    def __init__(self, *, ageing_tokens_per_s: float = AGEING_TOKENS_PER_S) -> None:
        assert ageing_tokens_per_s > 0
        self._ageing = ageing_tokens_per_s

    def rank(self, candidate: Candidate) -> tuple[float, ...]:
        """Cached tokens plus age, both counted from the clock's origin: comparing two ranks needs no present time."""
        return (candidate.arrived_s * self._ageing - candidate.num_cached, candidate.serial)


class Priority(FirstComeFirstServed):
    """Higher priority first, then order of arrival; the lowest priority gives way, and may be made to."""

    defers = True

    def rank(self, candidate: Candidate) -> tuple[float, ...]:
        """Priority, then arrival."""
        return (-candidate.priority, candidate.serial)

    def standing(self, candidate: Candidate) -> tuple[float, ...]:
        """Priority, then arrival."""
        return (-candidate.priority, candidate.serial)

    def may_displace(self, waiting: Candidate, running: Candidate) -> bool:
        """If it is strictly more important."""
        return waiting.priority > running.priority


def make_policy(name: PolicyName) -> Policy:
    """The policy of that name."""
    policies: dict[PolicyName, Policy] = {
        "fcfs": FirstComeFirstServed(),
        "lpm": LongestPrefix(),
        "priority": Priority(),
    }
    return policies[name]
