"""One request's story: it feeds the metrics as it happens and becomes one access line when it ends."""

from __future__ import annotations

import logging

from phloem.core.clock import Clock
from phloem.core.errors import PhloemError
from phloem.serve.observe.metrics import Metrics

access_log = logging.getLogger("phloem.access")


class RequestObserver:
    """Lives from the first byte of a request to its last; `end` is called once."""

    def __init__(self, *, request_id: str, route: str, metrics: Metrics, clock: Clock) -> None:
        self._request_id = request_id
        self._route = route
        self._metrics = metrics
        self._clock = clock
        self._started_s = clock.now_s()
        self._first_token_s: float | None = None
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_generated = 0
        self._finishes: list[str] = []

    def accepted(self, *, num_prompt_tokens: int) -> None:
        """Valid, and on its way to the engine."""
        self._num_prompt_tokens += num_prompt_tokens
        self._metrics.accepted(num_prompt_tokens=num_prompt_tokens)

    def generated(self, num_tokens: int) -> None:
        """New tokens of one choice."""
        if self._first_token_s is None:
            self._first_token_s = self._clock.now_s() - self._started_s
            self._metrics.first_token(self._first_token_s)
        self._num_generated += num_tokens
        self._metrics.generated(num_tokens)

    def cached(self, num_tokens: int) -> None:
        """Prompt tokens found in the prefix cache."""
        self._num_cached_tokens += num_tokens
        self._metrics.cached(num_tokens)

    def choice_finished(self, reason: str) -> None:
        """One choice is complete."""
        self._finishes.append(reason)
        self._metrics.choice_finished(reason)

    def end(self, error: PhloemError | None) -> None:
        """The last byte went out, or `error` ended it."""
        total_s = self._clock.now_s() - self._started_s
        if error is not None:
            self._metrics.request_failed(error.code)
        else:
            self._metrics.request_finished(
                seconds=total_s, seconds_per_token=self._seconds_per_token(total_s), num_generated=self._num_generated
            )
        outcome = error.code if error is not None else ",".join(dict.fromkeys(self._finishes))
        access_log.info(
            "%s %s prompt=%d cached=%d generated=%d ttft=%s total=%.3fs finish=%s",
            self._request_id,
            self._route,
            self._num_prompt_tokens,
            self._num_cached_tokens,
            self._num_generated,
            "-" if self._first_token_s is None else f"{self._first_token_s:.3f}s",
            total_s,
            outcome,
        )

    def _seconds_per_token(self, total_s: float) -> float | None:
        """Mean over the tokens after each choice's first one."""
        num_later = self._num_generated - max(1, len(self._finishes))
        if self._first_token_s is None or num_later <= 0:
            return None
        return (total_s - self._first_token_s) * max(1, len(self._finishes)) / num_later
