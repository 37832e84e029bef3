"""Timing the ops of a device program, and the device itself, with events on its own clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import fx

from phloem.graph.cost import VIEWS, StepLoad
from phloem.graph.ir import target_name
from phloem.graph.lower.device import DeviceProgram
from phloem.graph.lower.program import Ceilings, OpTime, op_time
from phloem.kernels.triton.attention_shape import AttentionShape

BUSY_CYCLES = 60_000_000
"""How long the device is kept busy while the host launches what is to be timed: 30 ms. Otherwise the launches, which
take longer than most ops, would be what is timed."""
COPY_BYTES, MATRIX_SIZE, REPEATS = 1 << 30, 8192, 5


class Stopwatch:
    """Times what is launched between one `lap` and the next."""

    def __init__(self) -> None:
        torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
        self._events: list[torch.cuda.Event] = []
        self.lap()

    def lap(self) -> None:
        """The end of a lap, and the start of the next."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)

    def laps_s(self) -> list[float]:
        """The seconds of each lap; waits for the device."""
        torch.cuda.synchronize()
        pairs = zip(self._events, self._events[1:])
        return [begin.elapsed_time(end) * 1e-3 for begin, end in pairs]


@torch.inference_mode()
def profile(
    program: DeviceProgram, inputs: Mapping[str, torch.Tensor], shape: AttentionShape, load: StepLoad
) -> tuple[list[OpTime], torch.Tensor]:
    """The time of every op of a step, launched one by one, and the step's logits."""
    tape = program.tape(shape)
    nodes: list[fx.Node] = []
    watch = Stopwatch()

    def after(node: fx.Node) -> None:
        watch.lap()
        nodes.append(node)

    logits = tape.run(inputs, shape, after=after)
    laps = zip(nodes, watch.laps_s(), strict=True)
    timed = [(node, lap) for node, lap in laps if target_name(node) not in VIEWS]
    return [op_time(node, lap, load=load, stored=tape.num_bytes) for node, lap in timed], logits


def seconds(launch: Callable[[], object]) -> float:
    """The time of what a function launches."""
    watch = Stopwatch()
    launch()
    watch.lap()
    return watch.laps_s()[0]


def ceilings(device: torch.device) -> Ceilings:
    """The best of a few copies of a gigabyte, and of products of random square matrices in bfloat16."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = min(seconds(lambda: target.copy_(source)) for _ in range(REPEATS))
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).bfloat16() for _ in range(2))
    product_s = min(seconds(lambda: torch.mm(left, right)) for _ in range(REPEATS))
    return Ceilings(2 * COPY_BYTES / copy_s, 2 * MATRIX_SIZE**3 / product_s)
