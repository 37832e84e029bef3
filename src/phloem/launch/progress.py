"""The progress bar of offline work."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Requests done of all, and output tokens a second, on standard error. Shows nothing unless `is_shown`, and nothing
    where nobody looks (no terminal)."""

    def __init__(self, *, total: int, is_shown: bool) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        rate = TextColumn("{task.fields[rate]:.0f} tok/s")
        is_hidden = not (is_shown and console.is_terminal)
        self._bar = RichProgress(*columns, rate, console=console, transient=True, disable=is_hidden)
        self._task = self._bar.add_task("", total=total, rate=0.0)
        self._started_s = time.monotonic()
        self._num_tokens = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, *, num_tokens: int, num_requests: int) -> None:
        """So many more tokens were generated, and so many more requests are complete."""
        if self._bar.disable:
            return
        self._num_tokens += num_tokens
        rate = self._num_tokens / max(time.monotonic() - self._started_s, 1e-9)
        self._bar.update(self._task, advance=num_requests, rate=rate)
