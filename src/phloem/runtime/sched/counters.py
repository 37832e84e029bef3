"""What a scheduler counts for whoever watches it; nothing is decided by it."""

from __future__ import annotations

from phloem.core.wire import Stats
from phloem.memory.ledger.ledger import LedgerStats


class Counters:
    """Since the start. `num_steps` also numbers the plans."""

    def __init__(self) -> None:
        self.num_steps = self.num_preemptions = 0
        self._num_prompt_tokens = self._num_cached_tokens = self._num_generated_tokens = 0
        self._last_step_s, self._last_step_tokens = 0.0, 0

    def submitted(self, num_prompt_tokens: int) -> None:
        """A request was accepted."""
        self._num_prompt_tokens += num_prompt_tokens

    def started(self, num_cached_tokens: int) -> None:
        """A sequence got a row, and found so much of its request's prompt."""
        self._num_cached_tokens += num_cached_tokens

    def planned(self) -> None:
        """A plan has something in it."""
        self.num_steps += 1

    def preempted(self) -> None:
        """A sequence was sent back to the queue."""
        self.num_preemptions += 1

    def generated(self, num_tokens: int) -> None:
        """Tokens became known."""
        self._num_generated_tokens += num_tokens

    def computed(self, num_tokens: int, elapsed_s: float) -> None:
        """A step that computed tokens is over."""
        self._last_step_s, self._last_step_tokens = elapsed_s, num_tokens

    def stats(self, now_s: float, *, pages: LedgerStats, num_running: int, num_waiting: int) -> Stats:
        """With the gauges of now."""
        return Stats(
            time_s=now_s,
            num_running=num_running,
            num_waiting=num_waiting,
            pages_total=pages.num_pages,
            pages_free=pages.num_free,
            pages_cached=pages.num_cached,
            num_steps=self.num_steps,
            num_preemptions=self.num_preemptions,
            prompt_tokens=self._num_prompt_tokens,
            cached_tokens=self._num_cached_tokens,
            generated_tokens=self._num_generated_tokens,
            last_step_s=self._last_step_s,
            last_step_tokens=self._last_step_tokens,
        )
