"""A replica over two nodes, started separately, without Ray: two commands that meet at a TCP address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.launch.channels import channels_between, check_nodes, expect_free, ranks_of_node

MODEL = ("--model", "dummy:qwen3moe-tiny", "--dtype", "float32", "--memory-gb", "0.05", "--threads", "1")
BODY = {"prompt": [1, 2, 3], "max_tokens": 8, "temperature": 0, "ignore_eos": True}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 65000)


class Node:
    """One of the two commands."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "phloem", "serve", *MODEL, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def rank_pid(self) -> int:
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_until_ready(url: str, timeout_s: float = 40) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{url}/ready", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("not ready in time")


@pytest.fixture
def nodes() -> Iterator[tuple[str, Node, Node]]:
    """Node 1 first, then node 0: any order will do."""
    meet, port = f"127.0.0.1:{free_port()}", free_port()
    shared = ("--tp", "2", "--nodes", "2", "--meet", meet)
    far = Node(*shared, "--node-rank", "1")
    near = Node(*shared, "--port", str(port))
    yield f"http://127.0.0.1:{port}", near, far
    near.close()
    far.close()


def answer(url: str) -> str:
    reply = httpx.post(f"{url}/v1/completions", json=BODY, timeout=20)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


@pytest.mark.slow
def test_two_nodes_serve_survive_a_lost_rank_and_end_together(nodes: tuple[str, Node, Node]) -> None:
    """Red if plans do not cross TCP, if a rank that dies on the other node is not started again there and joined again
    here, or if node 1 outlives an orderly stop of node 0."""
    url, near, far = nodes
    wait_until_ready(url)
    first = answer(url)
    os.kill(far.rank_pid(), signal.SIGKILL)
    killed_s = time.monotonic()
    while httpx.get(f"{url}/health", timeout=2).status_code == 200:
        assert time.monotonic() - killed_s < 6, "nobody noticed"
        time.sleep(0.1)
    wait_until_ready(url)
    assert answer(url) == first
    near.process.terminate()
    assert near.process.wait(15) == 0
    assert far.process.wait(10) == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"nodes": 2, "tp": 2}, "meet"),
        ({"nodes": 2, "tp": 2, "meet": "nowhere"}, "meet"),
        ({"nodes": 2, "tp": 2, "meet": "127.0.0.1:65535"}, "meet"),
        ({"nodes": 2, "tp": 2, "meet": "127.0.0.1:5000", "node_rank": 2}, "node_rank"),
        ({"nodes": 2, "tp": 3, "meet": "127.0.0.1:5000"}, "nodes"),
        ({"node_rank": 1}, "node_rank"),
    ],
)
def test_what_contradicts_is_refused_at_start(options: dict[str, object], field: str) -> None:
    """Red if one of these starts and then waits for somebody who never comes."""
    with pytest.raises(ConfigError) as caught:
        check_nodes(Config(**options))
    assert caught.value.field == field


def test_a_port_that_is_taken_is_named() -> None:
    """Red if node 0 finds out in a thread of its own, and the others wait."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            expect_free(f"127.0.0.1:{port}")


def test_neighbours_stay_on_one_node() -> None:
    """Red if the ranks of a stage are spread over nodes: tensor is the innermost axis."""
    shares = [list(ranks_of_node(Config(tp=2, pp=2, nodes=2, meet="a:1", node_rank=node))) for node in (0, 1)]
    assert shares == [[0, 1], [2, 3]]
    assert channels_between("127.0.0.1:5000").results == "tcp://127.0.0.1:5001"
