"""Masks of a step: computed while the model runs, applied to all constrained rows in one operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from phloem.runtime.grammar.matcher import BitRow, Matcher
from phloem.runtime.grammar.priority import yield_to_steps

FloatRows = npt.NDArray[np.float32]

NUM_THREADS = 4
"""One slow grammar holds up the masks of its own rows only; four, those of all constrained rows."""


class MaskPool:
    """Computes masks beside the steps. A mask that a step could not wait for stays under way, for a later step.

    Nobody else may touch a matcher from `start` until its mask was taken. Threads start with the first mask.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="phloem-masks", initializer=yield_to_steps)
        self._under_way: WeakKeyDictionary[Matcher, Future[BitRow]] = WeakKeyDictionary()  # rows that end drop theirs

    def start(self, matchers: Iterable[Matcher]) -> None:
        """Begin with the masks that are not under way already."""
        for matcher in matchers:
            if matcher not in self._under_way:
                self._under_way[matcher] = self._threads.submit(matcher.mask)

    def take(self, matchers: Mapping[int, Matcher], *, patience_s: float | None) -> dict[int, BitRow]:
        """By row, the masks that are ready; waits for the others at most `patience_s` in all (None: without end)."""
        futures = {row: self._under_way[matcher] for row, matcher in matchers.items()}
        wait(futures.values(), timeout=patience_s)
        taken = {row: future.result() for row, future in futures.items() if future.done()}
        for row in taken:
            del self._under_way[matchers[row]]
        return taken

    def close(self) -> None:
        """End the threads; masks under way are finished, others never begun."""
        self._threads.shutdown(cancel_futures=True)


def masked(logits: Sequence[npt.NDArray[np.float32]], masks: Sequence[BitRow]) -> FloatRows:
    """The rows of logits [n, V] with minus infinity wherever the mask [n, words] forbids the token."""
    stacked = np.stack(logits)
    bits = np.stack(masks).view(np.uint8)
    allowed = np.unpackbits(bits, axis=1, count=stacked.shape[1], bitorder="little").view(np.bool_)
    return np.where(allowed, stacked, np.float32(-np.inf))
