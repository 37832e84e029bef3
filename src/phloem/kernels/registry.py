"""Which implementation serves a call: the highest priority whose requirements hold, and why the others do not.

    registry = Registry((*cpu.implementations(), ...))
    choice = registry.select(machine, Call("linear", "bfloat16", storage="q4"))
    print(choice.explain())

Selection is a function of its arguments: equal priorities are ordered by name, and nothing is measured or remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phloem.kernels.spec import Call, Implementation, Machine


@dataclass(frozen=True)
class Refusal:
    """A candidate that cannot serve a call, and the reasons."""

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The outcome of a selection: the implementation (None if nothing fits) and every candidate passed over."""

    call: Call
    chosen: Implementation | None
    refused: tuple[Refusal, ...]
    outranked: tuple[str, ...]

    def explain(self) -> str:
        """One line for the choice and one a candidate passed over."""
        what = f"{self.call.op} ({self.call.dtype}{', ' + self.call.storage if self.call.storage else ''})"
        lines = [f"{what}: {self.chosen.name if self.chosen else 'no implementation'}"]
        lines += [f"  not {refusal.name}: {'; '.join(refusal.reasons)}" for refusal in self.refused]
        lines += [f"  not {name}: lower priority" for name in self.outranked]
        return "\n".join(lines)


class Registry:
    """The implementations that exist, by op name."""

    def __init__(self, implementations: Sequence[Implementation]) -> None:
        self._by_op: dict[str, list[Implementation]] = {}
        for implementation in implementations:
            known = self._by_op.setdefault(implementation.op, [])
            if any(other.name == implementation.name for other in known):
                raise ValueError(f"{implementation.op}: implementation {implementation.name!r} registered twice")
            known.append(implementation)
        for known in self._by_op.values():
            known.sort(key=lambda implementation: (-implementation.priority, implementation.name))

    def ops(self) -> tuple[str, ...]:
        return tuple(sorted(self._by_op))

    def candidates(self, op: str) -> tuple[Implementation, ...]:
        """Implementations of `op`, best first."""
        return tuple(self._by_op.get(op, ()))

    def select(self, machine: Machine, call: Call) -> Choice:
        refused: list[Refusal] = []
        able: list[Implementation] = []
        for candidate in self.candidates(call.op):
            reasons = candidate.refusals(machine, call)
            if reasons:
                refused.append(Refusal(candidate.name, reasons))
            else:
                able.append(candidate)
        chosen = able[0] if able else None
        return Choice(call, chosen, tuple(refused), tuple(other.name for other in able[1:]))
