"""Time as a collaborator: the scheduler never asks the machine what time it is."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since an arbitrary origin; never goes backwards."""

    def now_s(self) -> float:
        """Seconds since this clock's origin."""


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Seconds since boot."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told; for tests, replay and simulation."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Seconds set so far."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (not negative)."""
        assert seconds >= 0
        self._now_s += seconds
