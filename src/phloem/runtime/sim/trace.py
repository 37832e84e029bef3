"""Who asked for what and when: arrivals read from a trace.

Mooncake (JSON lines) names the 512-token blocks of a prompt by hash, so prefixes are shared as they were in production;
Azure (CSV) has lengths only, so nothing is shared; a recording of our own has the prompts themselves, and steps with
their times.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

import msgspec

from phloem.core.errors import ConfigError
from phloem.core.wire import Finished, Submit
from phloem.runtime.record import Admitted, Committed, Header, Planned, read_frames
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler
from phloem.runtime.sim.cost import Sample, StepShape
from phloem.runtime.sim.rows import ContextRows

BLOCK_TOKENS = 512
FIRST_OWN_TOKEN = 1 << 29
"""Token ids below stand for shared blocks, from here on for what one request alone has."""


class Arrival(msgspec.Struct, frozen=True):
    """A request. The prompt is made of `blocks` (ids of `block_tokens` tokens each; the last may be cut) or, when there
    are none, of tokens that no other request has."""

    at_s: float
    num_prompt: int
    num_output: int
    serial: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = BLOCK_TOKENS
    prompt_ids: tuple[int, ...] = ()

    def prompt(self) -> tuple[int, ...]:
        """Token ids, made when they are needed: a trace of them would be gigabytes."""
        if self.prompt_ids:
            return self.prompt_ids
        size = self.block_tokens
        shared = [token for block in self.blocks for token in range(block * size, (block + 1) * size)]
        own = FIRST_OWN_TOKEN + (self.serial * 131_071) % FIRST_OWN_TOKEN
        shared += range(own, own + self.num_prompt - len(shared))
        return tuple(shared[: self.num_prompt])


class Recorded(msgspec.Struct, frozen=True):
    """What a recording tells: the engine's settings, its arrivals and its steps with their seconds."""

    settings: SchedulerSettings
    arrivals: tuple[Arrival, ...]
    samples: tuple[Sample, ...]


def read_trace(path: Path, *, limit: int, scale_length: float = 1.0, rate: float = 1.0) -> list[Arrival]:
    """The first `limit` requests of a Mooncake or Azure trace, with lengths times `scale_length`, arriving `rate` times
    as fast. ConfigError when the file is neither, naming it."""
    name = path.name.removesuffix(".gz")
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open("rt") as file:
            lines = _mooncake(file) if name.endswith(".jsonl") else _azure(file)
            return [
                _scaled(arrival, scale_length=scale_length, rate=rate)
                for arrival in islice(lines, limit)
                if arrival.num_output
            ]
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error.strerror or error}", field="trace") from error
    except (KeyError, ValueError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path} is not a trace in Mooncake's (.jsonl) or Azure's (.csv) format: {error}", field="trace"
        ) from error


def read_recording(path: Path) -> Recorded:
    """Arrivals, answers' lengths and step times of a file written with --record, by deciding everything again.
    ConfigError when it is none."""
    try:
        with path.open("rb") as file:
            frames = read_frames(file)
            header = next(frames, None)
            if not isinstance(header, Header):
                raise ConfigError(f"{path} is not a recording: it has no header", field="fit")
            return _replayed(header.settings, frames)
    except OSError as error:
        raise ConfigError(f"cannot read the recording {path}: {error.strerror}", field="fit") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not a recording: {error}", field="fit") from error


def _replayed(settings: SchedulerSettings, frames: Iterator[Any]) -> Recorded:
    scheduler, rows = make_scheduler(settings), ContextRows()
    submits: dict[str, tuple[float, Submit]] = {}
    arrivals: list[Arrival] = []
    samples: list[Sample] = []
    plans, shapes = {}, {}
    under_way: tuple[StepShape, float] | None = None  # committed, and more was to do: lasts until the next plan
    for frame in frames:
        match frame:
            case Admitted(now_s, command):
                scheduler.admit(command, now_s)
                if isinstance(command, Submit):
                    submits[command.request_id] = now_s, command
            case Planned(now_s, plan):
                scheduler.plan(now_s)
                if under_way is not None:
                    samples.append(Sample(under_way[0], now_s - under_way[1]))
                    under_way = None
                plans[plan.step] = plan
                shapes[plan.step] = rows.apply(plan), now_s
            case Committed(now_s, result):
                shape, planned_s = shapes.pop(result.step)
                for row, tokens in zip(result.rows, result.tokens, strict=True):
                    rows.learn(row, len(tokens))
                for event in scheduler.commit(plans.pop(result.step), result, now_s):
                    if isinstance(event, Finished):
                        at_s, submit = submits.pop(event.request_id)
                        arrivals.append(_arrival(at_s, submit, event, len(arrivals)))
                if shape.num_tokens and scheduler.has_work:
                    under_way = shape, planned_s
                elif shape.num_tokens:
                    samples.append(Sample(shape, now_s - planned_s))
    arrivals.sort(key=lambda arrival: arrival.at_s)
    return Recorded(settings, tuple(arrivals), tuple(samples))


def _arrival(at_s: float, submit: Submit, finished: Finished, serial: int) -> Arrival:
    return Arrival(at_s, len(submit.prompt), finished.num_generated_tokens, serial, prompt_ids=submit.prompt)


def _mooncake(file: IO[str]) -> Iterator[Arrival]:
    for serial, line in enumerate(file):
        value = msgspec.json.decode(line)
        yield Arrival(
            value["timestamp"] / 1000,
            value["input_length"],
            value["output_length"],
            serial,
            blocks=tuple(value["hash_ids"]),
        )


def _azure(file: IO[str]) -> Iterator[Arrival]:
    first: datetime | None = None
    for serial, line in enumerate(csv.DictReader(file)):
        arrived = datetime.fromisoformat(line["TIMESTAMP"][:26])
        first = first or arrived
        at_s = (arrived - first).total_seconds()
        yield Arrival(at_s, int(line["ContextTokens"]), int(line["GeneratedTokens"]), serial)


def _scaled(arrival: Arrival, *, scale_length: float, rate: float) -> Arrival:
    return msgspec.structs.replace(
        arrival,
        at_s=arrival.at_s / rate,
        num_prompt=max(1, round(arrival.num_prompt * scale_length)),
        num_output=max(1, round(arrival.num_output * scale_length)),
        block_tokens=max(1, round(arrival.block_tokens * scale_length)),
    )
