"""What passes may know of the world: the functions that Call reaches, and the limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from phloem.lang.functions import BUILT_IN, Functions
from phloem.lang.limits import ProgramLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class PassContext:
    """Handed to every pass."""

    functions: Functions = field(default_factory=lambda: BUILT_IN)
    limits: ProgramLimits = field(default_factory=ProgramLimits)
