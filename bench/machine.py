"""What the machine is and what it can do at most: the denominators of every floor.

`python -m bench.machine` prints them; the harness runs it as a process of its own, so that no thread pool stays behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

PROBE_BYTES = 512 << 20
"""Far beyond any last-level cache of a two-core slice, small beside the memory."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A CPU by name and by measured peaks: bytes read a second by `threads` threads, bf16 FLOPs a second."""

    model: str
    threads: int
    has_amx: bool
    has_avx512_bf16: bool
    read_bytes_per_s: float
    bf16_flops_per_s: float

    def describe(self) -> str:
        """One line for a row."""
        yes_no = ("no", "yes")
        return (
            f"{self.model}, {self.threads} threads, AMX {yes_no[self.has_amx]}, "
            f"AVX512-BF16 {yes_no[self.has_avx512_bf16]}, reads {self.read_bytes_per_s / 1e9:.1f} GB/s, "
            f"bf16 matmul {self.bf16_flops_per_s / 1e12:.2f} TFLOP/s"
        )


def measure(threads: int) -> Machine:
    """Run the probes in a fresh process of this interpreter; takes a few seconds of all `threads`."""
    command = [sys.executable, "-m", "bench.machine", str(threads)]
    done = subprocess.run(
        command, cwd=Path(__file__).resolve().parent.parent, capture_output=True, check=True, timeout=300
    )
    return msgspec.json.decode(done.stdout, type=Machine)


def _probe(threads: int) -> Machine:
    import torch

    torch.set_num_threads(threads)
    words = torch.ones(PROBE_BYTES // 4, dtype=torch.int32)
    read_s = _best_s(lambda: words.max(), repetitions=7)
    left = torch.randn(1024, 2048).bfloat16()
    right = torch.randn(2048, 2048).bfloat16()
    matmul_s = _best_s(lambda: left @ right, repetitions=15)
    model, flags = _cpuinfo()
    return Machine(
        model=model,
        threads=threads,
        has_amx="amx_bf16" in flags,
        has_avx512_bf16="avx512_bf16" in flags,
        read_bytes_per_s=PROBE_BYTES / read_s,
        bf16_flops_per_s=2 * 1024 * 2048 * 2048 / matmul_s,
    )


def _best_s(work: Callable[[], object], *, repetitions: int) -> float:
    """Shortest of several runs: the machine's limit, not its mood. The first run is a warm-up."""
    work()
    times_s = []
    for _ in range(repetitions):
        started_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - started_s)
    return min(times_s)


def _cpuinfo() -> tuple[str, frozenset[str]]:
    """Model name and flags of the first core."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields.get("model name", "unknown CPU"), frozenset(fields.get("flags", "").split())


if __name__ == "__main__":
    found = _probe(int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1)
    print(json.dumps(msgspec.to_builtins(found)))
