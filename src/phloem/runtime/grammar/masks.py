"""Masks of a step: computed while the model runs, applied to all constrained rows in one operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from phloem.runtime.grammar.matcher import BitRow, Matcher

FloatRows = npt.NDArray[np.float32]


class MaskThread:
    """Computes masks beside the step, on one thread or several. They are started by the first masks."""

    def __init__(self, *, num_threads: int = 1) -> None:
        self._thread = ThreadPoolExecutor(num_threads, thread_name_prefix="phloem-masks")

    def start(self, matchers: Mapping[int, Matcher]) -> Mapping[int, Future[BitRow]]:
        """The masks of rows, under way; nobody may touch the matchers before they are done."""
        return {row: self._thread.submit(matcher.mask) for row, matcher in matchers.items()}

    def close(self) -> None:
        """End the threads."""
        self._thread.shutdown()


def masked(logits: Sequence[npt.NDArray[np.float32]], masks: Sequence[BitRow]) -> FloatRows:
    """The rows of logits [n, V] with minus infinity wherever the mask [n, words] forbids the token."""
    stacked = np.stack(logits)
    bits = np.stack(masks).view(np.uint8)
    allowed = np.unpackbits(bits, axis=1, count=stacked.shape[1], bitorder="little").view(np.bool_)
    return np.where(allowed, stacked, np.float32(-np.inf))
