"""What one run has used up. Everything is charged before it is spent."""

from __future__ import annotations

import json
from typing import Any

from phloem.lang.errors import LimitExceeded, ProgramError
from phloem.lang.limits import ProgramLimits


class Meter:
    """Counts against the limits; LimitExceeded names the place that wanted too much."""

    def __init__(self, limits: ProgramLimits) -> None:
        self.limits = limits
        self.num_visits = 0
        self._num_tokens = 0
        self._num_requests = 0
        self._num_chars = 0

    def visit(self, place: str) -> None:
        """A node is about to run."""
        self.num_visits += 1
        self._expect(self.num_visits, self.limits.max_executed_nodes, "nodes are executed", place)

    def say(self, num_chars: int, place: str) -> None:
        """Text is about to be appended."""
        self._num_chars += num_chars
        self._expect(self._num_chars, self.limits.max_text_chars, "characters are appended or set", place)

    def branch(self, num_branches: int, place: str) -> None:
        """States are about to be copied; each counts as a node."""
        self.num_visits += num_branches
        self._expect(num_branches, self.limits.max_fan_out, "branches are made at once", place)

    def request(self, max_tokens: int, place: str, *, num_requests: int = 1) -> None:
        """Requests are about to go to the engine, for that many tokens in all."""
        self._num_requests += num_requests
        self._expect(self._num_requests, self.limits.max_requests, "requests are made", place)
        self._num_tokens += max_tokens
        self._expect(self._num_tokens, self.limits.max_total_tokens, "tokens are asked for", place)

    def refund(self, num_tokens: int) -> None:
        """That many of the tokens asked for were not needed."""
        self._num_tokens -= num_tokens

    def value(self, value: Any, place: str) -> None:
        """A variable is about to get a value."""
        try:
            size = len(value) if isinstance(value, str) else len(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ProgramError(f"{place}: not a value that JSON has: {error}", field=place) from error
        self._expect(size, self.limits.max_value_chars, "characters are in one variable", place)
        self.say(size, place)

    def _expect(self, count: int, most: int, what: str, place: str) -> None:
        if count > most:
            raise LimitExceeded(f"{place}: more than {most} {what}", field=place)
