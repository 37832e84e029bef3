"""How many replicas there should be, and which to start or end next: the decisions of a cluster, without the cluster.

    every tick:  lost -> forgotten        ready -> the router gets it        too few, or an old version -> start one
                 too many, or replaced -> the router drains one, then it ends

A rollout is nothing else than replicas of an old version: one new is started beyond the count, and when it serves, one
old one is drained; so the count that serves never falls.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, Protocol

State = Literal["starting", "ready", "draining"]
QUIET_S = 30.0
"""So long must the queue be short before a replica is taken away."""


class Status(NamedTuple):
    """What a launcher says of a replica: `url` once it serves, `lost` once it will not."""

    url: str | None = None
    lost: str | None = None


class Launcher(Protocol):
    """Starts and ends replicas somewhere; nothing here blocks."""

    def start(self, name: str) -> None:
        """Begin to start a replica."""

    def status(self, name: str) -> Status:
        """What became of it so far."""

    def stop(self, name: str) -> None:
        """End it and give its place back. Harmless when it is lost."""


class Front(Protocol):
    """The router, and the replicas' own numbers; nothing here blocks for long."""

    def add(self, url: str) -> None:
        """Send requests there."""

    def remove(self, url: str) -> None:
        """Send no more there, and let the open ones finish."""

    def is_removed(self, url: str) -> bool:
        """Whether the open ones have finished, or had their time."""

    def num_waiting(self, url: str) -> int:
        """Requests that wait in this replica's queue."""


class Scaler:
    """A count between `least` and `most`: one more when more than `high` wait at a replica on average, one fewer when
    nothing waited for QUIET_S. One change at a time: what was started must serve before the next is decided."""

    def __init__(self, *, least: int, most: int, high: float = 4.0, quiet_s: float = QUIET_S) -> None:
        self._least, self._most, self._high, self._quiet_s = least, most, high, quiet_s
        self.count = least
        self._busy_s: float | None = None

    def observe(self, waiting: list[int], now_s: float) -> None:
        """Queue depths of the replicas that serve."""
        if self._busy_s is None or any(waiting):
            self._busy_s = now_s
        if waiting and sum(waiting) > self._high * len(waiting) and len(waiting) >= self.count:
            self.count = min(self._most, self.count + 1)
        elif now_s - self._busy_s >= self._quiet_s and self.count > self._least:
            self.count -= 1
            self._busy_s = now_s


class Replica:
    """One of them, as the controller sees it."""

    def __init__(self, name: str, version: int) -> None:
        self.name, self.version = name, version
        self.state: State = "starting"
        self.url: str | None = None


class Controller:
    """Owns the list of replicas. `tick` is called every so often, and `roll_out` when everything shall be started
    anew."""

    def __init__(self, *, launcher: Launcher, front: Front, scaler: Scaler) -> None:
        self._launcher, self._front, self._scaler = launcher, front, scaler
        self._replicas: list[Replica] = []
        self._version = 0
        self._serial = itertools.count()

    def states(self) -> list[tuple[str, int, State]]:
        """(name, version, state) of every replica, the oldest first."""
        return [(each.name, each.version, each.state) for each in self._replicas]

    def roll_out(self) -> None:
        """From now on every replica there is belongs to an old version."""
        self._version += 1

    def tick(self, now_s: float) -> list[str]:
        """Look, decide, act; what happened, in words."""
        said = [word for replica in list(self._replicas) for word in self._look_at(replica)]
        serving = [replica.url for replica in self._replicas if replica.state == "ready" and replica.url]
        self._scaler.observe([self._front.num_waiting(url) for url in serving], now_s)
        return said + self._act()

    def close(self) -> None:
        """End all of them."""
        for replica in self._replicas:
            self._launcher.stop(replica.name)
        self._replicas.clear()

    def _look_at(self, replica: Replica) -> list[str]:
        status = self._launcher.status(replica.name)
        if status.lost is not None:
            if replica.url is not None and replica.state == "ready":
                self._front.remove(replica.url)
            self._forget(replica)
            return [f"{replica.name} is lost: {status.lost}"]
        if replica.state == "starting" and status.url is not None:
            replica.state, replica.url = "ready", status.url
            self._front.add(status.url)
            return [f"{replica.name} serves at {status.url}"]
        if replica.state == "draining" and replica.url is not None and self._front.is_removed(replica.url):
            self._forget(replica)
            return [f"{replica.name} has ended"]
        return []

    def _act(self) -> list[str]:
        staying = [replica for replica in self._replicas if replica.state != "draining"]
        old = [replica for replica in staying if replica.version != self._version]
        are_ready = all(replica.state == "ready" for replica in staying)
        count = self._scaler.count
        if len(staying) < count:
            return [self._start() for _ in range(count - len(staying))]
        if old and len(staying) == count:
            return [self._start()]  # one more than the count, until it serves
        if len(staying) > count and (are_ready or not old):
            return [self._drain(old[0] if old else staying[-1])]
        return []

    def _start(self) -> str:
        replica = Replica(f"replica-{next(self._serial)}", self._version)
        self._replicas.append(replica)
        self._launcher.start(replica.name)
        return f"{replica.name} (version {replica.version}) is being started"

    def _drain(self, replica: Replica) -> str:
        if replica.url is None:
            self._forget(replica)
            return f"{replica.name} is not needed any more"
        replica.state = "draining"
        self._front.remove(replica.url)
        return f"{replica.name} is being drained"

    def _forget(self, replica: Replica) -> None:
        self._replicas.remove(replica)
        self._launcher.stop(replica.name)
