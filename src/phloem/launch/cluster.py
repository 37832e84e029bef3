"""`phloem serve --cluster ray`: replicas on a Ray cluster behind a router on this machine.

    this process   Controller.tick twice a second: start, watch, scale, roll out    (parallel.replica_count: decides)
      |-- phloem router      the one address; replicas join and leave at /replicas
      `-- Ray actors         one a machine and replica, each owns a `phloem serve`  (parallel.cluster: does)

SIGHUP rolls out: every replica is replaced, one after the other, by one that is started from what is installed and
configured by then. SIGINT and SIGTERM end everything.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from phloem.core.config import Config
from phloem.core.errors import ConfigError, EngineDead
from phloem.launch.listen import listen
from phloem.parallel.cluster import RayLauncher, connect
from phloem.parallel.replica_count import Controller, Scaler

TICK_S = 0.5
ROUTER_START_S = 20.0
ANSWER_S = 2.0
OWN = frozenset(
    {"cluster", "ray_address", "min_replicas", "max_replicas", "host", "port", "nodes", "node_rank", "meet", "dp"}
)
"""Options of the cluster, not of a replica."""
WAITING_METRIC = "phloem:num_requests_waiting{"


class HttpFront:
    """A `replica_count.Front` over the router's /replicas and the replicas' /metrics."""

    def __init__(self, router_url: str, *, admin_key: str, drain_timeout_s: float) -> None:
        self._url, self._admin_key, self._drain_timeout_s = f"{router_url}/replicas", admin_key, drain_timeout_s
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="phloem-front")
        self._removals: dict[str, Future[None]] = {}

    def add(self, url: str) -> None:
        """As replica_count.Front."""
        self._ask("POST", {"url": url}, timeout_s=ANSWER_S + 5)

    def remove(self, url: str) -> None:
        """As replica_count.Front; it drains in a thread."""
        body = {"url": url, "drain_timeout_s": self._drain_timeout_s}
        self._removals[url] = self._pool.submit(self._ask, "DELETE", body, timeout_s=self._drain_timeout_s + 5)

    def is_removed(self, url: str) -> bool:
        """As replica_count.Front."""
        return self._removals[url].done()

    def num_waiting(self, url: str) -> int:
        """As replica_count.Front; 0 of one that does not answer: that it is lost is found out elsewhere."""
        try:
            with urllib.request.urlopen(f"{url}/metrics", timeout=ANSWER_S) as reply:
                lines = reply.read().decode().splitlines()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return 0
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(WAITING_METRIC))

    def close(self) -> None:
        """Wait for nobody any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, method: str, body: dict[str, object], *, timeout_s: float) -> None:
        headers = {"Authorization": f"Bearer {self._admin_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url, msgspec.json.encode(body), headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s):
                pass
        except urllib.error.HTTPError as error:
            _say(f"the router refused {method} {body['url']}: {error.read().decode()[:300]}")
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            _say(f"the router did not answer {method} {body['url']}: {error}")


def serve_cluster(config: Config) -> int:
    """Serve until a signal (0) or the router's end (1). ConfigError where options, Ray or the cluster are wrong."""
    if config.min_replicas > config.max_replicas:
        raise ConfigError(
            f"--min-replicas {config.min_replicas} is more than --max-replicas {config.max_replicas}",
            field="min_replicas",
        )
    stopped, rolling = threading.Event(), threading.Event()
    with listen(config.host, config.port) as probe:
        port = int(probe.getsockname()[1])
    connect(config.ray_address)  # which takes SIGTERM for itself
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    signal.signal(signal.SIGHUP, lambda *_: rolling.set())
    admin_key = secrets.token_hex(16)
    router = _start_router(config, port, admin_key)
    front = HttpFront(f"http://{config.host}:{port}", admin_key=admin_key, drain_timeout_s=config.drain_timeout_s)
    launcher = RayLauncher(
        arguments=replica_arguments(config),
        num_stages=config.pp,
        bundle={"CPU" if config.device == "cpu" else "GPU": config.tp},
    )
    controller = Controller(
        launcher=launcher, front=front, scaler=Scaler(least=config.min_replicas, most=config.max_replicas)
    )
    _say(f"serving on http://{config.host}:{port}; {config.min_replicas} to {config.max_replicas} replicas on Ray")
    try:
        while not stopped.wait(TICK_S):
            if router.poll() is not None:
                raise EngineDead(f"the router ended with exit code {router.returncode}")
            if rolling.is_set():
                rolling.clear()
                controller.roll_out()
            for word in controller.tick(time.monotonic()):
                _say(word)
        return 0
    finally:
        router.terminate()
        controller.close()
        launcher.close()
        front.close()
        router.wait()


def replica_arguments(config: Config) -> list[str]:
    """The flags that make a replica of this configuration: what differs from the defaults, less the cluster's own."""
    defaults, flags = Config(), []
    for name in Config.__struct_fields__:
        value = vars_of(config)[name]
        if name in OWN or value == vars_of(defaults)[name]:
            continue
        flag = name.replace("_", "-")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags


def vars_of(config: Config) -> dict[str, object]:
    """Name to value."""
    return msgspec.structs.asdict(config)


def _start_router(config: Config, port: int, admin_key: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "phloem", "router", "--host", config.host, "--port", str(port)]
    command += ["--admin-key", admin_key, "--log-level", config.log_level]
    if config.api_key is not None:
        command += ["--api-key", config.api_key]
    router = subprocess.Popen(command)
    deadline_s = time.monotonic() + ROUTER_START_S
    while time.monotonic() < deadline_s and router.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{config.host}:{port}/health", timeout=ANSWER_S):
                return router
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    router.kill()
    router.wait()
    raise EngineDead("the router did not start")


def _say(text: str) -> None:
    print(f"phloem: {text}", file=sys.stderr, flush=True)
