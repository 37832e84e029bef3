"""How long each part of starting up took, said as it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """A list of (name, seconds). With `show_as`, every stage is printed under that name when it ends."""

    def __init__(self, *, show_as: str | None = None) -> None:
        self._show_as = show_as
        self._stages: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block. A block that raises is not recorded."""
        started_s = time.monotonic()
        yield
        self.report(name, time.monotonic() - started_s)

    def report(self, name: str, seconds: float) -> None:
        """Record a stage that somebody else timed."""
        self._stages.append((name, seconds))
        if self._show_as is not None:
            sys.stdout.write(f"  {self._show_as:<7} {name:<18} {seconds:6.2f} s\n")
            sys.stdout.flush()

    def finished(self) -> tuple[tuple[str, float], ...]:
        """What was recorded, in order."""
        return tuple(self._stages)
