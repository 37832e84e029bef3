"""Replicas on a Ray cluster: a placement group each, an actor on each machine it uses, which owns the processes there.

    pp 1        one bundle of tp GPUs (or CPUs), STRICT_PACK               tensor ranks talk twice a layer: one machine
    pp n        n bundles of tp, SPREAD: over machines where it can         stages talk once a step: across machines

An actor starts `phloem serve` with --nodes and --node-rank, as a person would on two machines by hand. Ray is only the
hand: it finds the machines and notices when they are gone. Nothing is pickled but command lines.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from phloem.core.errors import ConfigError
from phloem.parallel.replica_count import Status

STOP_TIMEOUT_S = 10.0
PORTS_OF_A_MEETING = 3
PR_SET_PDEATHSIG = 1


class NodeActor:
    """On one machine of one replica: starts the command there, and tells how it does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> tuple[str, int, int]:
        """This machine's address, a port to serve at, and the first of three in a row to meet at."""
        import ray

        util: Any = ray.util  # typed or not, by whether ray is installed
        host = str(util.get_node_ip_address())
        return host, _free_ports(host, 1), _free_ports(host, PORTS_OF_A_MEETING)

    def run(self, arguments: Sequence[str]) -> None:
        """Start `phloem` with `arguments`; it dies with this actor."""
        command = [sys.executable, "-P", "-m", "phloem", *arguments]
        self._process = subprocess.Popen(command, preexec_fn=_die_with_parent)

    def status(self, url: str | None) -> str:
        """starting, ready (what serves at `url` says so; without one, it runs), or why it ended."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            return f"exit code {code}"
        if url is None:
            return "ready"
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=2):
                return "ready"
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return "starting"

    def stop(self) -> None:
        """SIGTERM, a moment to drain, SIGKILL."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
            self._process.kill()


class RayReplica:
    """One replica's placement group and actors, and how far its start has come."""

    def __init__(self, *, group: Any, actors: list[Any]) -> None:
        self.group, self.actors = group, actors
        self.address = actors[0].address.remote()
        self.url: str | None = None
        self.answers: list[Any] = []  # status calls under way, one an actor


class RayLauncher:
    """A `replica_count.Launcher` on the cluster that this process is connected to. `arguments` are those of `phloem
    serve` without addresses; a bundle wants `bundle` resources, as {"GPU": 4} or {"CPU": 2}."""

    def __init__(self, *, arguments: Sequence[str], num_stages: int, bundle: dict[str, float]) -> None:
        self._arguments, self._num_stages, self._bundle = list(arguments), num_stages, bundle
        self._replicas: dict[str, RayReplica] = {}
        self._ending: list[tuple[Any, RayReplica]] = []

    def start(self, name: str) -> None:
        """Ask for a place; actors start when there is one."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = "STRICT_PACK" if self._num_stages == 1 else "SPREAD"
        group = placement_group([self._bundle] * self._num_stages, strategy=strategy)
        actor = ray.remote(NodeActor)
        actors = [
            actor.options(
                num_cpus=self._bundle.get("CPU", 0),
                num_gpus=self._bundle.get("GPU", 0),
                max_restarts=0,  # a rank alone is no use: the replica is started again as a whole
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=stage),
            ).remote()
            for stage in range(self._num_stages)
        ]
        self._replicas[name] = RayReplica(group=group, actors=actors)

    def status(self, name: str) -> Status:
        """Advance its start, if it can be, and say where it is."""
        import ray

        self._reap()
        replica = self._replicas[name]
        try:
            if replica.url is None:
                self._launch(replica)
                return Status()
            if not replica.answers:
                urls = [replica.url, *[None] * (self._num_stages - 1)]
                pairs = zip(replica.actors, urls, strict=True)
                replica.answers = [actor.status.remote(url) for actor, url in pairs]
            done, pending = ray.wait(replica.answers, num_returns=len(replica.answers), timeout=0)
            answers = [str(answer) for answer in ray.get(done)]
            if not pending:
                replica.answers = []
        except ray.exceptions.RayError as error:
            return Status(lost=f"its machine or actor is gone ({type(error).__name__})")
        ended = next((answer for answer in answers if answer not in ("ready", "starting")), None)
        if ended is not None:
            return Status(lost=ended)
        is_ready = not pending and all(answer == "ready" for answer in answers)
        return Status(url=replica.url if is_ready else None)

    def stop(self, name: str) -> None:
        """Ask the actors to end their processes; the place is given back when they have."""
        replica = self._replicas.pop(name, None)
        if replica is not None:
            self._ending.append(([actor.stop.remote() for actor in replica.actors], replica))

    def close(self) -> None:
        """Wait until all that were stopped have ended."""
        import ray

        for calls, _ in self._ending:
            ray.wait(calls, num_returns=len(calls), timeout=STOP_TIMEOUT_S + 1)
        self._reap()

    def _launch(self, replica: RayReplica) -> None:
        import ray

        if not ray.wait([replica.address], timeout=0)[0]:
            return
        host, port, meet = ray.get(replica.address)
        for stage, actor in enumerate(replica.actors):
            arguments = ["serve", *self._arguments, "--host", host, "--port", str(port)]
            if self._num_stages > 1:
                nodes = str(self._num_stages)
                arguments += ["--nodes", nodes, "--node-rank", str(stage), "--meet", f"{host}:{meet}"]
            actor.run.remote(arguments)
        replica.url = f"http://{host}:{port}"

    def _reap(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        ending, self._ending = self._ending, []
        for calls, replica in ending:
            if len(ray.wait(calls, num_returns=len(calls), timeout=0)[0]) < len(calls):
                self._ending.append((calls, replica))
                continue
            for actor in replica.actors:
                ray.kill(actor)
            remove_placement_group(replica.group)


def connect(address: str) -> None:
    """Join the Ray cluster at `address` (host:port, or auto). ConfigError without Ray or a cluster there."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--cluster ray needs Ray: pip install 'phloem[ray]'", field="cluster") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster at {address}: {str(error).splitlines()[0]}; start one with `ray start --head`",
            field="ray_address",
        ) from error


def _free_ports(host: str, count: int) -> int:
    """The first of `count` ports in a row that are free now."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind((host, 0))
            port = int(first.getsockname()[1])
            try:
                for offset in range(1, count):
                    stack.enter_context(socket.socket()).bind((host, port + offset))
            except (OSError, OverflowError):
                continue
            return port


def _die_with_parent() -> None:
    """In the child: be killed when the actor's process dies, however it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
