"""`phloem serve --cluster ray` on a cluster of several raylets on this machine: a node is lost in the middle of a load,
and a new version is rolled out under one."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.launch.cluster import replica_arguments, serve_cluster

RAYLET_BYTES = 80_000_000
BODY = {"prompt": "a fern", "max_tokens": 20, "ignore_eos": True}


def test_a_replica_gets_what_differs_and_nothing_of_the_cluster() -> None:
    """Red if a replica starts a cluster of its own, or loses an option on the way."""
    config = Config(cluster="ray", port=9, tp=2, prefix_cache=False, max_replicas=3, model="dummy:null")
    assert replica_arguments(config) == ["--model", "dummy:null", "--tp", "2", "--no-prefix-cache"]


def test_bounds_that_contradict_are_refused() -> None:
    """Red if the scaler gets a count below its own least."""
    with pytest.raises(ConfigError, match="--min-replicas 3"):
        serve_cluster(Config(cluster="ray", min_replicas=3, max_replicas=2))


class Load:
    """Four clients that ask one thing after the other, and what they were told."""

    def __init__(self, url: str) -> None:
        self.told: Counter[str] = Counter()
        self._url, self._stopped = url, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with httpx.Client(timeout=20) as client:
            while not self._stopped.is_set():
                reply = client.post(f"{self._url}/v1/completions", json=BODY)
                self.told[str(reply.status_code) if reply.status_code != 200 else "ok"] += 1

    def stop(self) -> Counter[str]:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a request hangs"
        return self.told


class Served:
    """The command, its words, and the cluster under it."""

    def __init__(self, cluster: Any, nodes: list[Any], port: int) -> None:
        self.cluster, self.nodes, self.url = cluster, nodes, f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "phloem", "serve", "--model", "dummy:null", "--device", "cpu",
                   "--cluster", "ray", "--ray-address", cluster.address, "--min-replicas", "2", "--max-replicas", "2",
                   "--port", str(port), "--log-level", "warning"]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.words: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.words.append(line)

    def until(self, count: int, text: str, timeout_s: float = 60) -> None:
        """Until it has said `text` so often."""
        deadline_s = time.monotonic() + timeout_s
        while sum(text in line for line in self.words) < count:
            assert time.monotonic() < deadline_s, "".join(self.words)
            time.sleep(0.1)


@pytest.fixture
def served() -> Iterator[Served]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": RAYLET_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    nodes = [cluster.add_node(num_cpus=1, **options) for _ in range(3)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    it = Served(cluster, nodes, port)
    yield it
    it.process.kill()
    it.process.wait()
    cluster.shutdown()


@pytest.mark.slow
def test_a_lost_node_and_a_rollout_under_load(served: Served) -> None:
    """Red if the loss of a machine loses more than what was being answered there, if its replica is not started on
    another one, if a rollout fails a single request, or if anything outlives SIGTERM."""
    served.until(2, "serves at")
    load = Load(served.url)
    time.sleep(1)
    holding = _nodes_with_replicas(served)
    served.cluster.remove_node(holding[0], allow_graceful=False)
    served.until(1, "is lost", 30)
    served.until(3, "serves at")
    told = load.stop()
    assert told["ok"] > 20
    assert sum(told.values()) - told["ok"] <= 8, told  # two in flight there for each replica, and a breaker's worth

    served.process.send_signal(signal.SIGHUP)
    served.cluster.add_node(num_cpus=1, object_store_memory=RAYLET_BYTES)  # room for one more than the count
    load = Load(served.url)
    served.until(2, "has ended", 90)
    told = load.stop()
    assert set(told) == {"ok"}, told
    served.process.terminate()
    assert served.process.wait(30) == 0


def _nodes_with_replicas(served: Served) -> list[Any]:
    """Raylets whose one CPU is taken."""
    import ray

    ray.init(address=served.cluster.address, log_to_driver=False)
    try:
        busy = {
            node for node, use in ray._private.state.available_resources_per_node().items() if not use.get("CPU", 0)
        }
        return [node for node in served.nodes if node.node_id in busy]
    finally:
        ray.shutdown()
