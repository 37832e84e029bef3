"""What every lowering ends in, whatever the device: a graph with its weights, and the program a step runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from phloem.graph.capture.inputs import StepDims, StepInputs


class StepProgram(Protocol):
    """A compiled model: static inputs, and one call that turns them into logits."""

    inputs: StepInputs

    def run(self, dims: StepDims) -> torch.Tensor:
        """Logits `[num_logits, vocabulary]` float32 of the tokens in `logit_rows`; valid until the next run."""

    def argmax(self, dims: StepDims) -> Sequence[int] | None:
        """The most likely token of each of those rows, where the program has it for free."""

    def close(self) -> None:
        """Give back threads and memory."""


class Capture(Protocol):
    """A graph with its weights in memory, waiting for the buffers of a step."""

    def __call__(self, *, caches: Sequence[torch.Tensor], inputs: StepInputs) -> StepProgram:
        """The program over one cache tensor a layer and these static inputs."""
