"""`phloem simulate`: what a fleet of replicas would do with a trace, decided by the real scheduler and the real router
on a virtual clock. Nothing here loads torch."""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from phloem.core.errors import ConfigError
from phloem.parallel.replicas import Routing, make_policy
from phloem.runtime.sched.build import SchedulerSettings
from phloem.runtime.sim import report
from phloem.runtime.sim.cost import fit, relative_error
from phloem.runtime.sim.fleet import Fleet, Machine
from phloem.runtime.sim.hardware import CARDS, MODELS, num_kv_tokens, stage_cost
from phloem.runtime.sim.trace import Arrival, read_recording, read_trace

PAGE_SIZE = 64
CONTEXT = 131_072


def run(arguments: argparse.Namespace) -> int:
    """Simulate and print. ConfigError names the option or the file that is wrong."""
    began_s = time.monotonic()
    for name in ("requests", "rate", "scale_length", "tp", "pp", "max_running", "max_step_tokens"):
        if vars(arguments)[name] <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0", field=name)
    machine, arrivals, about = _fitted(arguments) if arguments.fit else _on_gpus(arguments)
    if arguments.trace is not None:
        arrivals = read_trace(
            arguments.trace, limit=arguments.requests, scale_length=arguments.scale_length, rate=arguments.rate
        )
    if not arrivals:
        raise ConfigError("nothing to simulate: give a TRACE, or --fit a recording with requests in it", field="trace")
    num_replicas = _num_replicas(arguments)
    fleet = Fleet([machine] * num_replicas, Routing(make_policy(arguments.router)))
    outcomes = fleet.run(arrivals)
    summary = report.summarise(outcomes)
    print(f"{num_replicas} replicas of {about}, {arguments.router}")
    for name, value in report.lines(summary):
        print(f"  {name:<16}{value}")
    print(f"simulated in {time.monotonic() - began_s:.1f} s", file=sys.stderr)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    return 0


def _num_replicas(arguments: argparse.Namespace) -> int:
    size = arguments.tp * arguments.pp
    if arguments.replicas is not None and arguments.gpus is not None:
        raise ConfigError("--gpus and --replicas say the same; give one", field="gpus")
    if arguments.gpus is None:
        num_replicas: int = 1 if arguments.replicas is None else arguments.replicas
    elif arguments.gpus % size:
        raise ConfigError(f"--gpus {arguments.gpus} is no multiple of --tp x --pp = {size}", field="gpus")
    else:
        num_replicas = arguments.gpus // size
    if num_replicas < 1:
        raise ConfigError("there must be at least one replica", field="replicas")
    return num_replicas


def _fitted(arguments: argparse.Namespace) -> tuple[Machine, list[Arrival], str]:
    """The engine that was recorded, with its own settings."""
    recorded = read_recording(arguments.fit)
    try:
        cost = fit(recorded.samples)
    except ValueError as error:
        raise ConfigError(f"{arguments.fit}: {error}; record a longer run", field="fit") from error
    off = relative_error(cost, recorded.samples)
    print(f"fitted to {len(recorded.samples):,} steps, mean error {100 * off:.1f} % a step: {cost}", file=sys.stderr)
    return Machine(settings=recorded.settings, cost=cost), list(recorded.arrivals), f"what {arguments.fit} recorded"


def _on_gpus(arguments: argparse.Namespace) -> tuple[Machine, list[Arrival], str]:
    """H200s, by the rates of `hardware`."""
    card, tp, pp = CARDS["h200"], arguments.tp, arguments.pp
    model = MODELS.get(arguments.gpu_model)
    if model is None:
        known = ", ".join(sorted(MODELS))
        raise ConfigError(f"--gpu-model {arguments.gpu_model} is not known; there are {known}", field="gpu_model")
    num_tokens = num_kv_tokens(model, card, tp=tp, pp=pp)
    if num_tokens < CONTEXT:
        raise ConfigError(
            f"{arguments.gpu_model} leaves room for {max(0, num_tokens):,} tokens of cache on {tp * pp} H200s, and a "
            f"context has {CONTEXT:,}; raise --tp or --pp",
            field="tp",
        )
    settings = SchedulerSettings(
        num_pages=num_tokens // PAGE_SIZE,
        page_size=PAGE_SIZE,
        max_rows=arguments.max_running,
        max_step_tokens=arguments.max_step_tokens,
        max_model_len=CONTEXT,
        policy="lpm",
        num_micro_batches=pp,
    )
    machine = Machine(settings=settings, cost=stage_cost(model, card, tp=tp, pp=pp), num_stages=pp, depth=1)
    return machine, [], f"{arguments.gpu_model}, tp {tp}, pp {pp}, H200"
