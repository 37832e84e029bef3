"""Every decision on record: what the scheduler was told and when, what it planned, and the proof that it would again.

A recording is a sequence of frames, each a length (4 bytes, big-endian) and a msgpack value: first a `Header`, then
`Admitted`, `Planned`, `Committed` and `Abandoned` in the order of the calls. Time and seeds are inputs, so a fresh
scheduler fed with the same commands and results makes the same plans, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from phloem.core.plan import StepPlan
from phloem.core.result import StepResult
from phloem.core.wire import Command, Event, Stats
from phloem.runtime.loop import Decider
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler

FORMAT_VERSION = 1
BYTES_PER_LENGTH = 4


class Header(msgspec.Struct, frozen=True, tag=True):
    """The first frame."""

    settings: SchedulerSettings
    version: int = FORMAT_VERSION


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """A command came in."""

    now_s: float
    command: Command


class Planned(msgspec.Struct, frozen=True, tag=True):
    """A step was decided."""

    now_s: float
    plan: StepPlan


class Committed(msgspec.Struct, frozen=True, tag=True):
    """A step's result came in."""

    now_s: float
    result: StepResult


class Abandoned(msgspec.Struct, frozen=True, tag=True):
    """A step failed as a whole."""

    step: int
    message: str


Frame = Header | Admitted | Planned | Committed | Abandoned

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


class Recorder:
    """Appends frames to a file."""

    def __init__(self, file: BinaryIO, *, settings: SchedulerSettings) -> None:
        self._file = file
        self.write(Header(settings))

    def write(self, frame: Frame) -> None:
        """One frame; it reaches the disk when the file is flushed or closed."""
        encoded = _encode(frame)
        self._file.write(len(encoded).to_bytes(BYTES_PER_LENGTH, "big") + encoded)


class RecordingScheduler:
    """A scheduler that writes down what passes through it."""

    def __init__(self, scheduler: Decider, recorder: Recorder) -> None:
        self._scheduler = scheduler
        self._recorder = recorder

    @property
    def has_work(self) -> bool:
        """As the scheduler."""
        return self._scheduler.has_work

    @property
    def is_drained(self) -> bool:
        """As the scheduler."""
        return self._scheduler.is_drained

    def admit(self, command: Command, now_s: float) -> list[Event]:
        """As the scheduler, on record."""
        self._recorder.write(Admitted(now_s, command))
        return self._scheduler.admit(command, now_s)

    def plan(self, now_s: float) -> StepPlan:
        """As the scheduler, on record."""
        plan = self._scheduler.plan(now_s)
        self._recorder.write(Planned(now_s, plan))
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now_s: float) -> list[Event]:
        """As the scheduler, on record."""
        self._recorder.write(Committed(now_s, result))
        return self._scheduler.commit(plan, result, now_s)

    def fail(self, plan: StepPlan, message: str) -> list[Event]:
        """As the scheduler, on record."""
        self._recorder.write(Abandoned(plan.step, message))
        return self._scheduler.fail(plan, message)

    def fail_all(self, code: str, message: str) -> list[Event]:
        """As the scheduler; nothing comes after it, so it needs no record."""
        return self._scheduler.fail_all(code, message)

    def stats(self, now_s: float) -> Stats:
        """As the scheduler."""
        return self._scheduler.stats(now_s)

    def check(self) -> None:
        """As the scheduler."""
        self._scheduler.check()


def read_frames(file: BinaryIO) -> Iterator[Frame]:
    """The frames of a recording, without a last one that was cut off by a crash. ValidationError if it is none."""
    while len(length := file.read(BYTES_PER_LENGTH)) == BYTES_PER_LENGTH:
        num_bytes = int.from_bytes(length, "big")
        if len(encoded := file.read(num_bytes)) < num_bytes:
            return
        yield _decode(encoded)


def replay(path: Path) -> int:
    """Decide everything again; AssertionError at the first plan that differs. Returns the number of plans compared."""
    with path.open("rb") as file:
        frames = read_frames(file)
        header = next(frames, None)
        assert isinstance(header, Header), "a recording starts with a header"
        assert header.version == FORMAT_VERSION, f"recorded in format {header.version}, this is {FORMAT_VERSION}"
        scheduler = make_scheduler(header.settings)
        plans: dict[int, StepPlan] = {}
        num_plans = 0
        for frame in frames:
            match frame:
                case Admitted(now_s, command):
                    scheduler.admit(command, now_s)
                case Planned(now_s, recorded):
                    plan = scheduler.plan(now_s)
                    assert _encode(plan) == _encode(recorded), f"step {recorded.step}: {describe(plan)}"
                    plans[plan.step] = plan
                    num_plans += 1
                case Committed(now_s, result):
                    scheduler.commit(plans.pop(result.step), result, now_s)
                case Abandoned(step, message):
                    scheduler.fail(plans.pop(step), message)
                case Header():
                    raise AssertionError("a second header")
    return num_plans


def describe(plan: StepPlan) -> str:
    """A plan in one line of words, for people who read recordings."""
    starts = "; ".join(
        f"sequence {start.sequence_id} starts in row {start.row}, {start.num_computed}/{len(start.token_ids)} cached"
        for start in plan.starts
    )
    num_decoding = sum(1 for count in plan.num_tokens if count == 1)
    num_shared = sum(len(group.rows) for group in plan.shared)
    parts = [
        f"{sum(plan.num_tokens)} tokens in {len(plan.rows)} rows, {num_decoding} of them one token each",
        starts,
        f"rows {', '.join(map(str, plan.ends))} end" if plan.ends else "",
        f"{sum(len(pages) for _, pages in plan.new_pages)} new pages" if plan.new_pages else "",
        f"{len(plan.copies)} pages copied" if plan.copies else "",
        f"{num_shared} rows share prefixes" if num_shared else "",
    ]
    return f"step {plan.step}: " + "; ".join(part for part in parts if part)
