"""W1 and its neighbours on a GPU: the workload that mini-sglang and nano-vllm published, and single requests.

    python -m bench.w1 --only W1a,W1b --passes 2 [--write] [--profile] [--peer transformers]

W1: 256 requests at once, prompts of U[100, 1024] random token ids in [0, 10000], outputs of U[100, 1024] tokens, end
tokens ignored, temperature 0.6; W1a in the shapes of Qwen3-0.6B, W1b of Qwen3-14B, random weights, bfloat16. The first
pass warms up on another seed. Requests go through the engine's own loop, scheduler and mailboxes; times are wall clock
from the first submission to the last token on the host.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from bench import rows
from bench.rows import Context, Series
from bench.w1_profile import Profile
from bench.w1_work import Work, w1
from phloem.core.request import SamplingParams
from phloem.core.resolve import resolve
from phloem.core.wire import Failed, Finished, Submit, Tokens
from phloem.launch.stages import Stages
from phloem.launch.wiring import build_engine
from phloem.runtime.mailbox import Mailbox

OURS = "phloem"
UNSEEN_SEED = 99  # of the traced pass: prompts of an earlier one would come from the prefix cache
SHAPES = {"0.6b": "dummy:qwen3-0.6b", "14b": "dummy:qwen3-14b"}
WORKLOADS = {"W1a": "0.6b", "W1b": "14b"}
FLOORS = {
    ("0.6b", "W1"): 37_185.0,
    ("14b", "W1"): 8_459.0,
    ("14b", "decode_1k"): 6.40,
    ("0.6b", "decode_1k"): 0.30,
}
"""From bytes and FLOPs at the peaks measured on an H200: 4.4 TB/s read, 790 TFLOP/s (issue 3)."""
OPTIONS = {"max_running": 256, "max_step_tokens": 8192, "max_model_len": 2112, "page_size": 64, "policy": "fcfs"}


class Driver:
    """An engine and the time it takes for a piece of work."""

    def __init__(self, model: str, **options: object) -> None:
        self.stages = Stages()
        self._commands: Mailbox = Mailbox()
        self._events: Mailbox = Mailbox()
        config = resolve(flags={"model": model, "device": "cuda", **OPTIONS, **options}).config
        self.engine = build_engine(
            config=config, source=model, inbox=self._commands, outbox=self._events, stages=self.stages
        )
        self._number = 0
        gc.collect()
        gc.freeze()

    def run(self, work: Work) -> tuple[float, float]:
        """Seconds to the first token of all and to the last; every output has its full length."""
        submits = [
            Submit(f"{self._number}-{index}", prompt, SamplingParams(
                temperature=work.temperature, max_tokens=length, ignore_eos=True))
            for index, (prompt, length) in enumerate(zip(work.prompts, work.lengths))
        ]  # fmt: skip
        self._number += 1
        num_tokens, num_finished, first_s = 0, 0, 0.0
        started_s = time.perf_counter()
        self._commands.send(submits)
        while num_finished < len(submits):
            self.engine.loop.turn()
            for event in self._events.poll(0.0):
                if isinstance(event, Tokens):
                    first_s = first_s or time.perf_counter() - started_s
                    num_tokens += len(event.token_ids)
                elif isinstance(event, Finished):
                    num_finished += 1
                elif isinstance(event, Failed):
                    raise RuntimeError(event.message)
        total_s = time.perf_counter() - started_s
        while self.engine.loop.turn():
            self._events.poll(0.0)
        assert num_tokens == sum(work.lengths), (num_tokens, sum(work.lengths))
        return first_s, total_s

    def close(self) -> None:
        self.engine.close()


def fresh(chance: random.Random, length: int) -> tuple[int, ...]:
    return tuple(chance.randint(0, 10000) for _ in range(length))


def throughput(driver: Driver, name: str, seeds: Sequence[int]) -> Iterator[Series]:
    """Output tokens a second of W1. Each seed is a workload of its own, with its own floor, and runs once: a second
    time its prompts would be in the prefix cache. `output` is seed 0, which floors and peers are about."""
    for seed in seeds:
        work = w1(seed)
        _, total_s = driver.run(work)
        rate = sum(work.lengths) / total_s
        print(f"  {name} seed {seed}: {total_s:.2f} s, {rate:,.0f} tok/s", flush=True)
        metric = "output" if seed == 0 else f"output_seed_{seed}"
        yield Series(workload=name, metric=metric, unit="tok/s", engine=OURS, values=(rate,))


def latency(driver: Driver, shape: str, repeats: int = 5) -> Iterator[Series]:
    """One request at a time: decode at context 1k, time to first token of 128 tokens, prefill of 8,192."""
    chance = random.Random(7)
    decode, firsts, prefill = [], [], []
    for _ in range(repeats + 2):
        first_s, total_s = driver.run(Work([fresh(chance, 1024)], [128]))
        decode.append((total_s - first_s) / 127 * 1e3)
        firsts.append(driver.run(Work([fresh(chance, 128)], [1]))[1] * 1e3)
        prefill.append(driver.run(Work([fresh(chance, 8191)], [1]))[1])
    for metric, unit, values in (
        ("decode_1k", "ms", decode), ("ttft_128", "ms", firsts), ("prefill_8192", "s", prefill)
    ):  # fmt: skip
        yield Series(workload=f"single-{shape}", metric=metric, unit=unit, engine=OURS, values=tuple(values[2:]))


def shared_prefix(driver: Driver, shape: str) -> Iterator[Series]:
    """64 requests below one cached prefix of 8,192 tokens: 256 tokens of their own, 64 outputs."""
    chance = random.Random(9)
    values = []
    for _ in range(3):
        prefix = fresh(chance, 8192)
        driver.run(Work([prefix], [1]))
        _, total_s = driver.run(Work([prefix + fresh(chance, 256) for _ in range(64)], [64] * 64))
        values.append(total_s)
    yield Series(workload=f"shared-{shape}", metric="total", unit="s", engine=OURS, values=tuple(values[1:]))


def measure(arguments: argparse.Namespace) -> Iterator[Series]:
    """Every chosen workload, one engine after the other."""
    chosen = arguments.only.split(",")
    for name, shape in WORKLOADS.items():
        if name in chosen:
            yield from measure_throughput(arguments, name, shape)
            free_memory()
        if f"single-{shape}" in chosen or f"shared-{shape}" in chosen:
            yield from measure_latency(arguments, shape)
            free_memory()


def measure_throughput(arguments: argparse.Namespace, name: str, shape: str) -> list[Series]:
    """W1 on one shape, warm."""
    began_s = time.perf_counter()
    driver = Driver(SHAPES[shape], **dict(arguments.set))
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in driver.stages.finished())
    first_s, _ = driver.run(Work([tuple(range(128))], [1]))
    print(
        f"{name}: built and first token in {time.perf_counter() - began_s:.2f} s ({stages}, first token {first_s:.2f})"
    )
    print(f"  {driver.engine.hands.memory}; {driver.engine.hands.backend}", flush=True)
    for seed in range(1, 1 + arguments.warm_passes):
        print(f"  warm-up seed {seed}: {driver.run(w1(seed))[1]:.2f} s", flush=True)
    profile = Profile(driver.engine.loop) if arguments.profile else None
    series = list(throughput(driver, name, [0, *range(11, 10 + arguments.passes)]))
    if profile is not None:
        profile.show()
        profile.trace(partial(driver.run, w1(UNSEEN_SEED)), Path(arguments.trace) if arguments.trace else None)
    driver.close()
    return series


def option(text: str) -> tuple[str, object]:
    """page_size=128 -> an engine's option and its value."""
    name, _, value = text.partition("=")
    return name, int(value) if value.isdecimal() else value


def measure_latency(arguments: argparse.Namespace, shape: str) -> list[Series]:
    """Single requests and shared prefixes on one shape."""
    chosen = arguments.only.split(",")
    driver = Driver(SHAPES[shape], max_model_len=9216, max_running=64, **dict(arguments.set))
    series: list[Series] = []
    if f"single-{shape}" in chosen:
        series += latency(driver, shape)
    if f"shared-{shape}" in chosen:
        series += shared_prefix(driver, shape)
    for one in series:
        print(
            f"  {one.workload} {one.metric}: {', '.join(f'{value:.4g}' for value in one.values)} {one.unit}", flush=True
        )
    driver.close()
    return series


def free_memory() -> None:
    """Let a model go before the next is loaded."""
    import torch

    gc.unfreeze()
    gc.collect()
    torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="W1a,W1b,single-0.6b,single-14b,shared-14b")
    parser.add_argument("--passes", type=int, default=2, help="timed passes, one a seed")
    parser.add_argument("--warm-passes", type=int, default=2)
    parser.add_argument("--set", nargs="*", type=option, default=[], metavar="OPTION=VALUE", help="engine options")
    parser.add_argument("--profile", action="store_true", help="where a step's time goes, on host and device")
    parser.add_argument("--trace", help="file for the profiler's table")
    parser.add_argument("--peer", choices=["transformers"], help="run it beside, in the same command")
    parser.add_argument("--write", metavar="FOLDER", type=Path, help="write the rows as JSON there")
    arguments = parser.parse_args(argv)
    series = list(measure(arguments))
    for one in series:
        print(f"{one.workload:>14} {one.metric:<14} {one.median:12,.4g} {one.unit:<6} "
              f"min {min(one.values):,.4g} max {max(one.values):,.4g}")  # fmt: skip
    peers = list(beside(arguments.only.split(","), arguments.warm_passes)) if arguments.peer else []
    if arguments.write:
        write(series, peers, arguments.write)
    return 0


def beside(chosen: Sequence[str], num_warm: int) -> Iterator[Series]:
    """Seed 0 of the same workloads by transformers' continuous batching, in a process of its own, warmed up as ours."""
    seeds = ",".join(map(str, [*range(1, 1 + num_warm), 0]))
    for name, shape in WORKLOADS.items():
        if name in chosen:
            command = [sys.executable, "-m", "bench.w1_transformers", "--shape", shape, "--seeds", seeds]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            last = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"{last['engine']} {name} seed 0: {last['tok_s']:,.0f} tok/s", flush=True)
            yield Series(workload=name, metric="output", unit="tok/s", engine=last["engine"], values=(last["tok_s"],))


def write(series: Sequence[Series], peers: Sequence[Series], folder: Path) -> None:
    import torch

    context = Context(
        machine=torch.cuda.get_device_name(),
        command="python -m bench.w1 " + shlex.join(sys.argv[1:]),
        versions={"torch": str(torch.__version__), "python": sys.version.split()[0]},
        date=rows.now(),
        commit=rows.current_commit(),
    )
    for name in sorted({one.workload for one in series}):
        ours = [one for one in series if one.workload == name]
        shape = WORKLOADS.get(name) or name.partition("-")[2]
        floors = {
            one.metric: FLOORS[key]
            for one in ours
            if (key := (shape, "W1" if one.metric == "output" else one.metric)) in FLOORS
        }
        made = rows.make_rows(ours, peers, floors=floors, context=context)
        rows.write(made, [*ours, *(one for one in peers if one.workload == name)], workload=name, folder=folder)


if __name__ == "__main__":
    sys.exit(main())
