"""The options of `phloem simulate`. Light: the command line shows them before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add = parser.add_argument
    add("trace", nargs="?", type=Path, metavar="TRACE", help="Mooncake .jsonl or Azure .csv, or either as .gz")
    add("--fit", type=Path, metavar="FILE", help="a recording (--record) to take settings and step costs from")
    add("--gpu-model", default="qwen3-32b", metavar="NAME", help="without --fit: this on H200s (default qwen3-32b)")
    add("--gpus", type=int, metavar="N", help="GPUs in all (default one replica)")
    add("--replicas", type=int, metavar="N", help="replicas, in place of --gpus")
    add("--tp", type=int, default=1, metavar="N", help="GPUs that share every layer (default 1)")
    add("--pp", type=int, default=1, metavar="N", help="stages (default 1)")
    add("--router", default="cache-aware", metavar="NAME", help="cache-aware (default), least-tokens, round-robin")
    add("--requests", type=int, default=1000, metavar="N", help="how many of the trace (default 1000)")
    add("--rate", type=float, default=1.0, metavar="X", help="arrivals X times as fast (default 1)")
    add("--scale-length", type=float, default=1.0, metavar="X", help="prompts and answers X times as long (default 1)")
    add("--max-running", type=int, default=256, metavar="N", help="without --fit: rows of a replica (default 256)")
    add("--max-step-tokens", type=int, default=4096, metavar="N", help="without --fit: budget (default 4096)")
    add("--json", type=Path, metavar="FILE", help="write the numbers here, too")
