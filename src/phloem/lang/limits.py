"""How much a program may ask for. Every bound is checked before, or while, it is used up; none after."""

from __future__ import annotations

import msgspec


class ProgramLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on one run. Static: `max_nodes`, `max_depth`, `max_iterations`, `max_fan_out`; the others while it runs.

    `max_executed_nodes` counts every visit of a node; `max_total_tokens` what is generated and scored, reserved before
    it is spent; `max_value_chars` the JSON text of one variable; `max_text_chars` all text that is appended or set,
    anywhere.
    """

    max_nodes: int = 2_000
    max_depth: int = 24
    max_iterations: int = 1_000
    max_fan_out: int = 64
    max_executed_nodes: int = 20_000
    max_requests: int = 4_000
    max_total_tokens: int = 200_000
    max_value_chars: int = 1_000_000
    max_text_chars: int = 8_000_000
    wall_time_s: float = 600.0

    def tightened(self, other: ProgramLimits) -> ProgramLimits:
        """The smaller of each."""
        return ProgramLimits(
            **{name: min(getattr(self, name), getattr(other, name)) for name in self.__struct_fields__}
        )
