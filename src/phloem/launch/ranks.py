"""The processes of a replica beside rank 0: started, watched and ended by the engine process.

Each gets its order on standard input, which stays open as long as rank 0 lives: its end ends the rank, so no orphan
stays. On one machine they meet at a file, plans travel over shared memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.launch.channels import channels_between, channels_in, ranks_of_node
from phloem.launch.process import describe_exit
from phloem.parallel.mailroom import DeciderPost
from phloem.parallel.mesh import Mesh

START_TIMEOUT_S = 600.0
"""For the slowest rank to load its weights."""
END_TIMEOUT_S = 1.0


class RankOrder(msgspec.Struct, frozen=True):
    """What one rank is told. `model` is a path, or dummy:<name>."""

    config: Config
    model: str
    rank: int
    meeting: str
    plans: str
    results: str

    @property
    def mesh(self) -> Mesh:
        """The replica's mesh."""
        return mesh_of(self.config)

    def source(self) -> Path | str:
        """The model as build_worker wants it."""
        return self.model if self.model.startswith("dummy:") else Path(self.model)


def mesh_of(config: Config) -> Mesh:
    """The mesh that the options ask for. ConfigError where they do not fit together."""
    if config.ep not in (1, config.tp):
        raise ConfigError(
            f"--ep {config.ep} needs --tp {config.ep}: experts are spread over the ranks that share a layer", field="ep"
        )
    return Mesh(pipe=config.pp, tensor=config.tp, whole_experts=config.ep > 1)


class Ranks:
    """Ranks 1 .. n - 1 of one replica on this machine, and the post to them. `on_lost` as in DeciderPost."""

    def __init__(self, *, config: Config, source: Path | str, on_lost: Callable[[str], None]) -> None:
        memory = Path("/dev/shm")
        mesh = mesh_of(config)
        self._folder = Path(tempfile.mkdtemp(prefix="phloem-ranks-", dir=memory if memory.is_dir() else None))
        channels = channels_in(self._folder) if config.meet is None else channels_between(config.meet)
        self.meeting = channels.meeting
        self.description = f"{mesh.size} ranks (tp {mesh.tensor}, pp {mesh.pipe})"
        self._on_lost = on_lost
        self.post = DeciderPost(plans=channels.plans, results=channels.results, num_ranks=mesh.size, on_lost=self._lose)
        order = RankOrder(config, str(source), 0, self.meeting, channels.plans, channels.results)
        self._is_ending = False
        here = [rank for rank in ranks_of_node(config) if rank]
        self._processes = [start_rank(order, rank) for rank in here]
        for rank, process in zip(here, self._processes, strict=True):
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def await_all(self, fingerprint: str) -> None:
        """Until every rank is ready; errors as DeciderPost.await_ranks. Then all are connected, and what they met in
        is removed: nothing is left behind however this process ends."""
        self.post.await_ranks(fingerprint, timeout_s=START_TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def end(self) -> None:
        """Give each a moment to end by itself, then end it. Harmless when all have."""
        self._is_ending = True
        for process in self._processes:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=END_TIMEOUT_S)
        self._kill()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if not self._is_ending:
            self.post.lose(f"rank {rank} ended: {describe_exit(code)}")

    def _lose(self, why: str) -> None:
        """One is lost: the others wait for it in vain, and so would a step here."""
        self._kill()
        self._on_lost(why)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def start_rank(order: RankOrder, rank: int) -> subprocess.Popen[bytes]:
    """Start a process on this machine and give it the order for `rank`."""
    process = subprocess.Popen([sys.executable, "-P", "-m", "phloem.launch.rank"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: its silence says so
        process.stdin.write(msgspec.json.encode(msgspec.structs.replace(order, rank=rank)) + b"\n")
        process.stdin.flush()
    return process


def die_with(stdin: int, exit_code: int) -> None:
    """Wait for the end of standard input, then end this process, wherever it is."""
    while os.read(stdin, 1):  # nothing more is ever written
        pass
    os._exit(exit_code)
