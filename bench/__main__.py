"""The command line: `python -m bench WORKLOAD... [--peers llama,vllm,transformers]`, or `python -m bench serve`."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import metadata

from bench import machine, rows, serve, startup
from bench.engines import OURS, PEERS, EngineFailed, EngineProcess, installed_peers, start_all
from bench.model import BenchModel, find_model
from bench.rows import Context, Series
from bench.workloads import WORKLOADS, Outcome, Workload, tiny

NAMES = (*WORKLOADS, "startup", "scheduler")


def main(arguments: Sequence[str]) -> int:
    """Run the named workloads; 0 when every one of ours was measured."""
    if arguments[:1] == ["serve"]:
        return serve.main(arguments[1:])
    if arguments[:1] == ["router"]:
        from bench import router

        return router.main(arguments[1:])
    if arguments[:1] == ["handover"]:
        from bench import handover

        return handover.main(arguments[1:])
    if arguments[:1] == ["programs"]:
        from bench.programs import measure

        return measure.main(arguments[1:])
    options = _parse(arguments)
    wanted = list(NAMES) if "all" in options.workloads else list(dict.fromkeys(options.workloads))
    if unknown := [name for name in wanted if name not in NAMES]:
        print(f"bench: no workload {', '.join(unknown)}; there are {', '.join(NAMES)}, all, serve", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runners are ended on the way out
    try:
        _run(wanted, options)
    except EngineFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _run(wanted: Sequence[str], options: argparse.Namespace) -> None:
    found = machine.measure(options.threads)
    print(f"bench: {found.describe()}", file=sys.stderr)
    engines = ([] if options.without_ours else [OURS]) + _peers(options.peers)
    report = _Reporter(found, options)
    if "scheduler" in wanted:
        from bench import scheduler

        report.finish("scheduler", scheduler.series(), floors={}, versions={})
    if {*wanted} - {"scheduler"}:
        model = find_model(options.model)
        if chosen := [WORKLOADS[name] for name in wanted if name in WORKLOADS]:
            _offline_workloads(chosen, engines, model, report, options)
        if "startup" in wanted:
            times = startup.measure(engines, model, threads=options.threads, repetitions=options.repetitions)
            report.finish("startup", times, floors={}, versions={})


def _offline_workloads(
    chosen: Sequence[Workload],
    names: Sequence[str],
    model: BenchModel,
    report: _Reporter,
    options: argparse.Namespace,
) -> None:
    engines, _ = start_all(names, model, options.threads)
    versions = {key: value for engine in engines for key, value in _qualified(engine).items()}
    try:
        for workload in chosen:
            if options.tiny:
                workload = tiny(workload)
            print(f"bench: {workload.title}", file=sys.stderr, flush=True)
            outcomes = _interleave(workload, engines, options.repetitions)
            series = _series(workload, outcomes)
            batch = workload.batch(0)
            floors = {metric.name: metric.floor(batch, model, report.machine) for metric in workload.metrics}
            report.finish(workload.name, series, floors=floors, versions=versions)
    finally:
        for engine in engines:
            engine.close()


def _interleave(workload: Workload, engines: Sequence[EngineProcess], repetitions: int) -> dict[str, list[Outcome]]:
    """Warm each engine up, then A B C A B C ...: a drift of the machine meets all of them alike."""
    outcomes: dict[str, list[Outcome]] = {engine.name: [] for engine in engines}
    for engine in engines:
        outcome = engine.run(workload.warm_up())
        print(f"bench:   warm-up {engine.name}: {outcome.total_s:.2f} s", file=sys.stderr, flush=True)
    for repetition in range(repetitions):
        for engine in engines:
            outcome = engine.run(workload.batch(repetition))
            outcomes[engine.name].append(outcome)
            print(f"bench:   {repetition + 1}/{repetitions} {engine.name}: {outcome.total_s:.2f} s", file=sys.stderr)
    return outcomes


def _series(workload: Workload, outcomes: dict[str, list[Outcome]]) -> list[Series]:
    return [
        Series(
            workload=workload.name,
            metric=metric.name,
            unit=metric.unit,
            engine=name,
            values=tuple(metric.of(workload.batch(index), outcome) for index, outcome in enumerate(measured)),
            note=measured[0].note,
        )
        for metric in workload.metrics
        for name, measured in outcomes.items()
    ]


class _Reporter:
    """Prints each workload's table as soon as it is there, and writes its rows unless told not to."""

    def __init__(self, found: machine.Machine, options: argparse.Namespace) -> None:
        self.machine = found
        self._writes = not (options.no_write or options.tiny or options.without_ours)
        self._command = shlex.join(["python", "-m", "bench", *options.command])

    def finish(
        self, workload: str, series: Sequence[Series], *, floors: dict[str, float], versions: dict[str, str]
    ) -> None:
        """One workload is measured."""
        print(rows.table(series, ours=OURS, floors=floors) + "\n", flush=True)
        if not self._writes:
            return
        context = Context(
            machine=self.machine.describe(),
            command=self._command,
            versions={**_versions(), **versions},
            date=rows.now(),
            commit=rows.current_commit(),
        )
        ours = [one for one in series if one.engine == OURS]
        others = [one for one in series if one.engine != OURS]
        path = rows.write(rows.make_rows(ours, others, floors=floors, context=context), series, workload=workload)
        print(f"bench: wrote {path.relative_to(rows.ROOT)}\n", file=sys.stderr)


def _qualified(engine: EngineProcess) -> dict[str, str]:
    """The engine's versions; torch is named after the engine that brings it."""
    versions = engine.ready.versions
    return {(f"torch ({engine.name})" if key == "torch" else key): value for key, value in versions.items()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("phloem", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _peers(asked: str | None) -> list[str]:
    there = installed_peers()
    if asked is None:
        return there
    names = [name for name in asked.split(",") if name]
    for name in names:
        if name not in PEERS:
            raise EngineFailed(f"no peer {name!r}; there are {', '.join(PEERS)}")
        if name not in there:
            raise EngineFailed(f"{name} is not installed; run `make bench-peers`")
    return names


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure this engine and its peers in one run.",
        epilog="Load on a running server is a command of its own: python -m bench serve --help",
    )
    parser.add_argument("workloads", nargs="+", help=f"{', '.join(NAMES)}, or all")
    parser.add_argument("--peers", help=f"of {','.join(PEERS)}; default: all that are installed; '' for none")
    parser.add_argument("--model", default="default", help="`default` or the path of a GGUF")
    parser.add_argument("--repetitions", type=int, default=3, help="counted runs of each engine (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every engine; default: all cores")
    parser.add_argument(
        "--tiny", action="store_true", help="sizes that only show that everything works; writes nothing"
    )
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    parser.add_argument("--without-ours", action="store_true", help="peers only; writes nothing")
    options = parser.parse_args(arguments)
    options.command = list(arguments)
    return options


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
