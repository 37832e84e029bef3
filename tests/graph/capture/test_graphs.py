"""When a bucket is captured: never in its first step, in idle moments first, under traffic seldom."""

from __future__ import annotations

import torch

from phloem.core.clock import ManualClock
from phloem.graph.capture.buckets import Bucket, Buckets, StepSizes
from phloem.graph.capture.graphs import PATIENCE, CapturedSteps, Recorded, StepOutput

CAPTURE_S = 0.02


class Bench:
    """A body and a recorder that note what happens; a recording takes CAPTURE_S."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Bucket]] = []
        self.clock = ManualClock()
        self.steps = CapturedSteps(self.body, recorder=self, clock=self.clock)

    def body(self, bucket: Bucket) -> StepOutput:
        self.log.append(("eager", bucket))
        return StepOutput(torch.zeros(1, dtype=torch.int32), None, torch.zeros(1, 4))

    def record(self, body, bucket: Bucket) -> Recorded:
        self.log.append(("record", bucket))
        self.clock.advance(CAPTURE_S)
        output = StepOutput(torch.ones(1, dtype=torch.int32), None, None)
        return Recorded(lambda: self.log.append(("replay", bucket)), output)

    def finish(self) -> None:
        """Nothing is under way."""

    def release(self) -> None:
        """Nothing is held."""

    def run(self, *buckets: Bucket) -> list[str]:
        """What happens when steps of these buckets come one after the other."""
        del self.log[:]
        for bucket in buckets:
            self.steps.run(bucket)
        return [kind for kind, _ in self.log]


def buckets(count: int) -> list[Bucket]:
    rule = Buckets(1024, 512)
    return [rule.of(StepSizes(rows, rows, rows, rows)) for rows in (1, 2, 4, 8, 16)[:count]]


def test_what_was_asked_for_most_is_captured_in_idle_moments() -> None:
    """Red when an idle engine captures in the order of arrival, twice, or what nobody asked for."""
    once, often, recent = buckets(3)
    bench = Bench()
    bench.run(often, once, often)  # the second time captures on the spot: the first capture ever may
    assert bench.run(often) == ["replay"]
    assert bench.run(recent, recent, recent) == ["eager"] * 3, "the last capture was a moment ago"
    assert [bench.steps.prepare() for _ in range(3)] == [True, True, False]
    assert [bucket for kind, bucket in bench.log if kind == "record"] == [recent, once]
    assert bench.run(recent, once) == ["replay", "replay"]


def test_traffic_without_gaps_is_captured_too_but_seldom() -> None:
    """Red when a first step waits for a capture, busy engines never get a graph, or captures come one after another."""
    first, second = buckets(2)
    bench = Bench()
    assert bench.run(first, first, second, second) == ["eager", "record", "replay", "eager", "eager"]
    bench.clock.advance(CAPTURE_S * PATIENCE)
    assert bench.run(second, second) == ["record", "replay", "replay"]


def test_warm_means_that_steps_like_the_last_are_captured() -> None:
    """Red when /ready says warm before the graph exists, or stays eager though an idle moment made it."""
    (bucket,) = buckets(1)
    bench = Bench()
    assert not bench.steps.is_warm
    bench.run(bucket)
    assert not bench.steps.is_warm
    bench.steps.prepare()
    assert bench.steps.is_warm


def test_short_of_memory_nothing_is_captured_any_more() -> None:
    """Red when graphs that were dropped come back, and with them their memory."""
    (bucket,) = buckets(1)
    bench = Bench()
    bench.run(bucket, bucket)
    bench.steps.shrink()
    assert bench.run(bucket, bucket, bucket) == ["eager"] * 3
    assert not bench.steps.prepare()
