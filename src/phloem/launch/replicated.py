"""`phloem serve --dp N`: N replicas on this machine, each a `phloem serve` of its own, and the router in front of them.

The cores, the memory for the KV cache and the GPUs are divided among the replicas. A replica that ends is started again
on its port while the router sends its requests to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys

import msgspec
import uvloop

from phloem.core.config import Config
from phloem.core.errors import ConfigError, EngineDead
from phloem.core.resolve import Resolved
from phloem.launch import models
from phloem.launch.listen import listen
from phloem.launch.order import EXIT_CALLER
from phloem.launch.process import describe_exit
from phloem.launch.router import Router
from phloem.launch.text import load_text_of
from phloem.memory.budget import FREE_FRACTION

LOCAL = "127.0.0.1"
MAX_RESTARTS = 3
"""Of one replica."""
RESTART_AFTER_S = 0.5
STOP_S = 5.0
"""Beyond the drain, for a replica to end by itself."""


class LocalReplica:
    """One `phloem serve` process on a port of its own."""

    def __init__(self, resolved: Resolved, *, index: int) -> None:
        self._resolved, self._index = resolved, index
        self._port = 0
        self.num_restarts_left = MAX_RESTARTS
        self.process = self.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOCAL}:{self._port}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it (again). Its socket is bound here, so that the port is known, and open there only, so that a dead
        replica refuses connections."""
        with listen(LOCAL, self._port) as listener:
            self._port = listener.getsockname()[1]
            command = [sys.executable, "-P", "-m", "phloem.launch.replica", str(listener.fileno())]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()],
                start_new_session=True, env=_environment(self._resolved.config, self._index),
            )  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: its exit says so
            self.process.stdin.write(msgspec.json.encode(self._resolved) + b"\n")
            self.process.stdin.flush()
        return self.process

    def stop(self, timeout_s: float) -> None:
        """End it, at the latest after `timeout_s`."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        self.process.kill()
        self.process.wait()


def serve_replicas(resolved: Resolved, listener: socket.socket) -> int:
    """Serve with `dp` replicas until a signal; the exit code. EngineDead when a replica cannot be kept alive."""
    config = resolved.config
    if config.record is not None:
        raise ConfigError("--record is for one replica: leave it out, or leave out --dp", field="record")
    location = models.locate(config.model)
    each = share(resolved)
    with listener:
        replicas = [LocalReplica(each, index=index) for index in range(config.dp)]
        try:
            router = Router(
                policy=config.router_policy,
                text=load_text_of(location, chat_template=config.chat_template),
                model=config.served_model_name or location.name,
                api_key=config.api_key,
                admin_key=config.api_key,
                max_queue=config.max_queue * config.dp,
                max_body_mb=config.max_body_mb,
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_run(router, replicas, listener, config))
        finally:
            for replica in replicas:
                replica.stop(0.0)


async def _run(router: Router, replicas: list[LocalReplica], listener: socket.socket, config: Config) -> int:
    watchers = [asyncio.create_task(_keep_alive(replica)) for replica in replicas]
    urls = [replica.url for replica in replicas]
    routing = asyncio.create_task(router.run(listener, replicas=urls, drain_timeout_s=config.drain_timeout_s))
    done, pending = await asyncio.wait([routing, *watchers], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    timeout_s = config.drain_timeout_s + STOP_S
    await asyncio.gather(*(asyncio.to_thread(replica.stop, timeout_s) for replica in replicas))
    for task in done - {routing}:
        task.result()
    return routing.result()


async def _keep_alive(replica: LocalReplica) -> None:
    """Start it again as often as may be; EngineDead after that, or when what it was asked for is wrong."""
    while True:
        code = await asyncio.to_thread(replica.process.wait)
        if code == EXIT_CALLER or not replica.num_restarts_left:
            raise EngineDead(f"replica {replica.url} ended: {describe_exit(code)}")
        replica.num_restarts_left -= 1
        logging.getLogger("phloem.router").warning(
            "replica %s ended (%s); starting it again (%d more times)",
            replica.url, describe_exit(code), replica.num_restarts_left,
        )  # fmt: skip
        await asyncio.sleep(RESTART_AFTER_S)
        replica.start()


def share(resolved: Resolved) -> Resolved:
    """One replica's part of this machine: what nobody said is divided by the number of replicas."""
    config, num_replicas = resolved.config, resolved.config.dp
    values: dict[str, object] = {"dp": 1, "host": LOCAL, "port": 0}
    if config.threads is None:
        values["threads"] = max(1, len(os.sched_getaffinity(0)) // num_replicas)
    if config.memory_gb is None and config.device == "cpu":
        free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        values["memory_gb"] = max(1e-3, round(free_bytes * FREE_FRACTION / num_replicas / 1e9, 3))
    return resolved.derive(**values)


def _environment(config: Config, index: int) -> dict[str, str]:
    """Each replica sees its own GPUs, in the order this process sees them."""
    environment = dict(os.environ)
    num_each = config.tp * config.pp
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(64)] if visible is None else [one for one in visible.split(",") if one]
    if mine := gpus[index * num_each : (index + 1) * num_each]:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return environment
