"""What a run says while it goes on, and at its end."""

from __future__ import annotations

from typing import Any

import msgspec

from phloem.lang.engine import Usage

BranchPath = tuple[str | int, ...]
"""Where it happened: fork, branch, fork within, branch ...; empty in the program's own state."""


class Delta(msgspec.Struct, frozen=True, tag="delta", tag_field="type"):
    """More text of a generation that is under way."""

    name: str
    text: str
    branch: BranchPath = ()


class Value(msgspec.Struct, frozen=True, tag="value", tag_field="type"):
    """A variable has its value."""

    name: str
    value: Any
    branch: BranchPath = ()


class ProgramResult(msgspec.Struct, frozen=True, tag="result", tag_field="type"):
    """The end: the variables that were asked for, and what they cost. `text` is all that was said in the program's own
    state; None when the program names its outputs, since what they do not need may never have been said."""

    variables: dict[str, Any]
    text: str | None
    usage: Usage

    def __getitem__(self, name: str) -> Any:
        return self.variables[name]


Event = Delta | Value | ProgramResult
