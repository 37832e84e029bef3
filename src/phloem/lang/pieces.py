"""What an author appends to a state: texts, generations, selections and turns, joined with `+`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phloem.lang.ir import Gen, Method, Role
from phloem.lang.traced import Appendable, Value, lift
from phloem.lang.where import trace_error


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A text."""

    value: Value
    commutable: bool = False


@dataclass(frozen=True, slots=True)
class GenPiece:
    """A generation; its result is converted to `type`, if there is one."""

    node: Gen
    type: type | None


@dataclass(frozen=True, slots=True)
class SelectPiece:
    """A selection."""

    name: str
    choices: Value
    method: Method


@dataclass(frozen=True, slots=True)
class TurnPiece:
    """A whole turn."""

    role: Role
    said: Said


Piece = TextPiece | GenPiece | SelectPiece | TurnPiece


class Said(Appendable):
    """Pieces in order."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)

    def __add__(self, other: Any) -> Said:
        return Said(self.pieces + pieces_of(other))

    def __radd__(self, other: Any) -> Said:
        return Said(pieces_of(other) + self.pieces)


def pieces_of(value: Any) -> tuple[Piece, ...]:
    """What may be appended. TraceError for anything else."""
    match value:
        case Said():
            return value.pieces
        case str():
            return (TextPiece(lift(value)),) if value else ()
        case Value():
            return (TextPiece(value),)
        case list() | tuple():
            return tuple(piece for each in value for piece in pieces_of(each))
        case _:
            raise trace_error(f"{type(value).__name__!r} cannot be appended; append a text, a value, gen() or select()")
