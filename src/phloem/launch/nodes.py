"""`phloem serve --nodes N --node-rank R` for R above 0: this machine's ranks of a replica that node 0 serves.

Each rank connects to node 0 and lives as long as that connection. When node 0 starts its engine again, or a rank here
dies, the ranks of this node start again and join; when node 0 stops in order, this command ends, too.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterable

from phloem.core.config import Config
from phloem.launch import models
from phloem.launch.channels import channels_between, check_nodes, ranks_of_node
from phloem.launch.order import EXIT_ENGINE
from phloem.launch.process import describe_exit
from phloem.launch.ranks import RankOrder, start_rank
from phloem.launch.serving import max_restarts

LIVES_A_LOSS = 2
"""A rank that died may be back before node 0 has noticed, and ends again with the engine that missed it."""
POLL_S = 0.1
PAUSE_S = 1.0


def serve_node(config: Config) -> int:
    """Run this node's ranks until node 0 is done (0), a signal (0), or they have failed too often (1)."""
    check_nodes(config)
    assert config.meet is not None
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    channels, location = channels_between(config.meet), models.locate(config.model)
    order = RankOrder(
        config, str(location.path or location.name), 0, channels.meeting, channels.plans, channels.results
    )
    ranks = ranks_of_node(config)
    for num_left in range(LIVES_A_LOSS * max_restarts(config), -1, -1):
        _say(f"node {config.node_rank}: ranks {ranks.start} to {ranks.stop - 1} join node 0 at {config.meet}")
        failure = _run_once(order, ranks, stopped)
        if failure is None:
            return 0
        _say(f"{failure}; " + (f"starting again ({num_left} more times)" if num_left else "giving up"))
        if stopped.wait(PAUSE_S):
            return 0
    return EXIT_ENGINE


def _run_once(order: RankOrder, ranks: range, stopped: threading.Event) -> str | None:
    """One life of the ranks; what went wrong, if anything."""
    processes = {rank: start_rank(order, rank) for rank in ranks}
    try:
        while not stopped.wait(POLL_S):
            codes = {rank: process.poll() for rank, process in processes.items()}
            for rank, code in codes.items():
                if code:
                    return f"rank {rank} ended: {describe_exit(code)}"
            if all(code == 0 for code in codes.values()):
                return None
        return None
    finally:
        _end(processes.values())


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _say(text: str) -> None:
    print(f"phloem: {text}", file=sys.stderr, flush=True)
