"""How many tokens will a request still generate? Admission over-commits memory by this answer."""

from __future__ import annotations

import math

INITIAL_SHARE = 0.5
INITIAL_MARGIN = 0.1
MIN_MARGIN = 0.05
SMOOTHING = 0.1
MARGIN_DECAY = 0.95
MARGIN_PER_PREEMPTION = 0.1


class OutputEstimate:
    """The observed share of `max_tokens` that choices really generate (an exponential average), plus a safety margin
    that grows with each preemption, so that less is over-committed, and decays as choices finish."""

    def __init__(self) -> None:
        self.share = INITIAL_SHARE
        self.margin = INITIAL_MARGIN

    def remaining(self, *, num_generated: int, max_tokens: int) -> int:
        """Tokens a choice is expected to add to those it has: at least 1, at most what it may."""
        expected = math.ceil(min(1.0, self.share + self.margin) * max_tokens)
        return max(1, min(expected, max_tokens) - num_generated)

    def observe_finish(self, *, num_generated: int, max_tokens: int) -> None:
        """A choice came to its end."""
        if max_tokens > 0:
            self.share += SMOOTHING * (num_generated / max_tokens - self.share)
        self.margin = max(MIN_MARGIN, self.margin * MARGIN_DECAY)

    def observe_preemption(self) -> None:
        """Memory ran out: the estimate was too low."""
        self.margin = min(1.0, self.margin + MARGIN_PER_PREEMPTION)
