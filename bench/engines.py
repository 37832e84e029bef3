"""Engines as processes: how each is started, and the pipe to its runner. Only the one being measured runs.

Between commands a runner's process group is stopped (SIGSTOP), so that no idle thread pool of one engine takes cycles
from another; the clock of a measurement is the runner's own and covers none of that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import msgspec

from bench.model import BenchModel
from bench.peers.convert import cache_dir
from bench.rows import ROOT
from bench.workloads import Batch, Outcome

OURS = "phloem"
PEERS = ("llama", "vllm", "transformers")
REPLY_TIMEOUT_S = 1800.0
VLLM_KV_GIB = 4
TCMALLOC_DIR, TCMALLOC = Path("/usr/lib/x86_64-linux-gnu"), "libtcmalloc_minimal.so.*"
"""vLLM asks for tcmalloc; it is preloaded where the system has it (Debian: libtcmalloc-minimal4)."""


class EngineFailed(Exception):
    """A runner died, was too slow or answered an error; the message ends with its last lines."""


class Ready(msgspec.Struct, frozen=True):
    """A runner's first line (runners/protocol.py)."""

    engine: str
    load_s: float
    versions: dict[str, str]
    choices: str


class _Reply(msgspec.Struct, frozen=True):
    ready: Ready | None = None
    result: Outcome | None = None
    error: str | None = None


def peer_python(name: str) -> Path:
    """The interpreter of a peer's venv, made by `make bench-peers`."""
    return ROOT / ".peers" / name / "bin" / "python"


def installed_peers() -> list[str]:
    """Peers whose venv is complete."""
    return [name for name in PEERS if (ROOT / ".peers" / name / ".installed").is_file()]


def runner_command(name: str, model: BenchModel, threads: int) -> list[str]:
    """What starts the runner of `name`: the GGUF for those that read it, the converted folder for the others."""
    weights = {OURS: model.name, "llama": str(model.gguf)}.get(name, str(model.folder))
    python = sys.executable if name == OURS else str(peer_python(name))
    return [python, "-m", f"bench.runners.{name}_runner", weights, str(threads)]


def environment(name: str, threads: int) -> dict[str, str]:
    """This process's environment with what the engine's own documentation asks for on a CPU."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if name == OURS:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
        return env
    env.pop("PYTHONPATH", None)
    env.pop("VIRTUAL_ENV", None)
    if name == "vllm":
        cores = sorted(os.sched_getaffinity(0))[:threads]
        env |= {
            # Else `auto` keeps one core for the front end: half of a two-core machine.
            "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}",
            "VLLM_CPU_KVCACHE_SPACE": str(VLLM_KV_GIB),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        # The front end would keep a pool of its own beside the bound threads.
        env.pop("OMP_NUM_THREADS")
        preload = [peer_python(name).parent.parent / "lib" / "libiomp5.so", *sorted(TCMALLOC_DIR.glob(TCMALLOC))[:1]]
        env["LD_PRELOAD"] = ":".join(str(library) for library in preload if library.is_file())
    return env


class EngineProcess:
    """A runner that has loaded its engine; use as a context manager. Raises EngineFailed from every method."""

    def __init__(self, name: str, model: BenchModel, threads: int) -> None:
        self.name = name
        log_dir = cache_dir() / "bench" / "logs"
        log_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = log_dir / f"{name}.log"
        env = environment(name, threads)
        if name == "vllm":
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                runner_command(name, model, threads),
                cwd=ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            ready = self._reply().ready
        except BaseException:
            self.close()
            raise
        assert ready is not None
        self.ready = ready
        self._signal(signal.SIGSTOP)

    def run(self, batch: Batch) -> Outcome:
        """Let the engine do one batch, alone on the machine."""
        self._signal(signal.SIGCONT)
        _pipe(self._process.stdin).write(msgspec.json.encode(batch) + b"\n")
        _pipe(self._process.stdin).flush()
        result = self._reply().result
        self._signal(signal.SIGSTOP)
        assert result is not None
        return result

    def close(self) -> None:
        """End the runner and everything it started."""
        stop_group(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            _pipe(pipe).close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _reply(self) -> _Reply:
        watchdog = threading.Timer(REPLY_TIMEOUT_S, self._signal, (signal.SIGKILL,))
        watchdog.start()
        line = _pipe(self._process.stdout).readline()
        watchdog.cancel()
        if not line:
            raise EngineFailed(f"{self.name} ended (status {self._process.wait()}):\n{self._log_tail()}")
        reply = msgspec.json.decode(line, type=_Reply)
        if reply.error is not None:
            raise EngineFailed(f"{self.name}: {reply.error}")
        return reply

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-12:]
        return "\n".join([f"  {line}" for line in lines] + [f"  (all of it: {self.log_path})"])

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def stop_group(process: subprocess.Popen[Any], *, grace_s: float = 15.0) -> None:
    """End a process that leads its own group, and the group: first politely, then not."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def start_all(names: Sequence[str], model: BenchModel, threads: int) -> tuple[list[EngineProcess], dict[str, str]]:
    """Start the engines one after another. A peer that fails is left out: name -> reason. Ours failing raises."""
    started: list[EngineProcess] = []
    failed: dict[str, str] = {}
    for name in names:
        print(f"bench: loading {name} ...", file=sys.stderr, flush=True)
        try:
            started.append(EngineProcess(name, model, threads))
        except EngineFailed as error:
            if name == OURS:
                for engine in started:
                    engine.close()
                raise
            failed[name] = str(error)
            print(f"bench: without {name}: {error}", file=sys.stderr)
        else:
            ready = started[-1].ready
            print(f"bench: {name} ready in {ready.load_s:.1f} s ({ready.choices})", file=sys.stderr, flush=True)
    return started, failed
