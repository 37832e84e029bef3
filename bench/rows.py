"""The format of a result: one row a metric and a peer, printed as a table and written to bench/results/."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
LOWER_IS_BETTER = frozenset({"s", "ms", "us"})


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one workload beside one peer.

    `value` and `peer_value` are medians over the repetitions, in `unit`; `ratio` is value / peer_value whichever
    direction is better (units of time: smaller is better). `floor` is what the machine allows, in the same unit: memory
    read and arithmetic at the measured peaks, no time for anything else. None: not known, or no peer asked for.
    """

    workload: str
    metric: str
    value: float
    unit: str
    floor: float | None
    peer: str | None
    peer_value: float | None
    ratio: float | None
    machine: str
    command: str
    versions: dict[str, str]
    date: str
    commit: str


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Every repetition of one metric by one engine, in the order they ran."""

    workload: str
    metric: str
    unit: str
    engine: str
    values: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        """Middle value; the mean of the two middle ones of an even number."""
        ordered, half = sorted(self.values), len(self.values) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What all rows of one run share."""

    machine: str
    command: str
    versions: dict[str, str]
    date: str
    commit: str


def make_rows(
    ours: Sequence[Series],
    peers: Sequence[Series],
    *,
    floors: dict[str, float],
    context: Context,
) -> list[Row]:
    """Pair each of our series with every peer's of the same metric; one row without a peer where there is none."""
    rows = []
    for series in ours:
        beside: list[Series | None] = [
            other for other in peers if (other.workload, other.metric) == (series.workload, series.metric)
        ]
        for other in beside or [None]:
            rows.append(
                Row(
                    workload=series.workload,
                    metric=series.metric,
                    value=series.median,
                    unit=series.unit,
                    floor=floors.get(series.metric),
                    peer=other.engine if other else None,
                    peer_value=other.median if other else None,
                    ratio=series.median / other.median if other and other.median else None,
                    **msgspec.structs.asdict(context),
                )
            )
    return rows


def write(rows: Sequence[Row], series: Sequence[Series], *, workload: str, folder: Path = RESULTS) -> Path:
    """Write `folder`/<date>-<workload>.json (the rows) and the repetitions behind them under `folder`/reps/."""
    stem = f"{time.strftime('%Y-%m-%d')}-{workload}"
    (folder / "reps").mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.json"
    for target, values in ((path, rows), (folder / "reps" / f"{stem}.json", series)):
        target.write_bytes(msgspec.json.format(msgspec.json.encode(list(values)), indent=2) + b"\n")
    return path


def table(series: Sequence[Series], *, ours: str, floors: dict[str, float]) -> str:
    """A text table: a line an engine and a metric, with the spread, what the machine allows and the ratio ours/peer."""
    mine = {(one.workload, one.metric): one.median for one in series if one.engine == ours}
    cells = [("workload", "metric", "engine", "median", "min", "max", "unit", "floor", f"{ours} / it", "")]
    for one in sorted(series, key=lambda one: (one.workload, one.metric, one.engine != ours)):
        base = mine.get((one.workload, one.metric))
        ratio = f"{base / one.median:.2f}x" if one.engine != ours and base and one.median else ""
        floor = floors.get(one.metric)
        cells.append(
            (
                one.workload,
                one.metric,
                one.engine,
                _figure(one.median),
                _figure(min(one.values)),
                _figure(max(one.values)),
                one.unit + (" (less is better)" if one.unit in LOWER_IS_BETTER else ""),
                _figure(floor) if floor else "",
                ratio,
                one.note,
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def current_commit() -> str:
    """Short hash of HEAD, with `+` when tracked files differ from it; `none` outside a repository."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if head and _git("status", "--porcelain", "--untracked-files=no") else "") or "none"


def now() -> str:
    """Local date and time, ISO 8601, seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _git(*arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout.strip() if done.returncode == 0 else ""
