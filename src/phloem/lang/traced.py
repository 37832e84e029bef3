"""Values that are known only at run time, as Python sees them while a program is traced.

Everything that an expression can say gives a new value. Everything else would need the value itself, which is not there
yet, and raises a TraceError that names the line and what to write instead: nothing is ever decided for one side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from phloem.lang.expr import AnyExpr, Arithmetic, Compare, Comparison, Compute, Const, Format, Item, ListOf, Logic, Var
from phloem.lang.where import trace_error


class Read:
    """One reading of a variable: `version` and `blocks` tell later whether it is still what was read."""

    __slots__ = ("blocks", "name", "state", "version")

    def __init__(self, name: str, *, state: object, version: int, blocks: tuple[object, ...]) -> None:
        self.name, self.state, self.version, self.blocks = name, state, version, blocks


class Appendable:
    """What a value may be followed by with `+` without being computed with (pieces.py)."""


class Value:
    """An expression over variables. Compares, computes and indexes to further values."""

    __slots__ = ("expr", "reads")

    def __init__(self, expr: AnyExpr, reads: Sequence[Read] = ()) -> None:
        self.expr = expr
        self.reads = tuple(reads)

    # -- what an expression can say

    def __eq__(self, other: object) -> Value:  # type: ignore[override]
        return _compare(self, "==", other)

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return _compare(self, "!=", other)

    def __lt__(self, other: object) -> Value:
        return _compare(self, "<", other)

    def __le__(self, other: object) -> Value:
        return _compare(self, "<=", other)

    def __gt__(self, other: object) -> Value:
        return _compare(self, ">", other)

    def __ge__(self, other: object) -> Value:
        return _compare(self, ">=", other)

    def __add__(self, other: object) -> Value:
        if isinstance(other, Appendable):
            return NotImplemented
        return _compute(self, "+", other)

    def __radd__(self, other: object) -> Value:
        return _compute(other, "+", self)

    def __sub__(self, other: object) -> Value:
        return _compute(self, "-", other)

    def __rsub__(self, other: object) -> Value:
        return _compute(other, "-", self)

    def __mul__(self, other: object) -> Value:
        return _compute(self, "*", other)

    def __rmul__(self, other: object) -> Value:
        return _compute(other, "*", self)

    def __and__(self, other: object) -> Value:
        right = lift(other)
        return Value(Logic("and", (self.expr, right.expr)), self.reads + right.reads)

    def __or__(self, other: object) -> Value:
        right = lift(other)
        return Value(Logic("or", (self.expr, right.expr)), self.reads + right.reads)

    def __invert__(self) -> Value:
        return Value(Logic("not", (self.expr,)), self.reads)

    def __getitem__(self, key: object) -> Value:
        if isinstance(key, slice):
            raise trace_error("a slice of a value that is known only at run time; use s.call with a function")
        right = lift(key)
        return Value(Item(self.expr, right.expr), self.reads + right.reads)

    def contains(self, part: object) -> Value:
        """Whether `part` is in it: in a text, a list or a record's names."""
        return _compare(part, "in", self)

    def one_of(self, choices: object) -> Value:
        """Whether it is one of `choices`."""
        return _compare(self, "in", choices)

    def startswith(self, part: object) -> Value:
        """Whether the text begins with `part`."""
        return _compare(self, "starts with", part)

    def endswith(self, part: object) -> Value:
        """Whether the text ends with `part`."""
        return _compare(self, "ends with", part)

    # -- what needs the value itself

    def __bool__(self) -> bool:
        _refuse(
            "`if`, `while`, `and`, `or`, `not`, `in`",
            "`with s.If(...)`, `with s.While(...)`, `&`, `|`, `~`, `.contains()`",
        )

    def __iter__(self) -> NoReturn:
        _refuse("`for`", "`with s.Map(...) as item`")

    def __contains__(self, part: object) -> bool:
        _refuse("`in`", "`value.contains(part)`")

    def __len__(self) -> int:
        _refuse("`len`", '`s.call("length", value)`')

    def __int__(self) -> int:
        _refuse("`int`", 'gen(..., type=int), or `s.call("number", value)`')

    def __float__(self) -> float:
        _refuse("`float`", 'gen(..., type=float), or `s.call("number", value)`')

    def __index__(self) -> int:
        _refuse("an index, `range` or `int`", "`with s.Map(...)`, or a keyword-only argument, which is known now")

    def __str__(self) -> str:
        _refuse("`str`, `print` or `%`", "an f-string inside the @program function")

    def __format__(self, spec: str) -> str:
        _refuse(
            "`format`, or an f-string outside of @program", "an f-string inside it, or @part on the helper function"
        )

    def __hash__(self) -> int:
        _refuse("a set, or a key of a dict,", "`If` with `==`")

    def __repr__(self) -> str:
        _refuse("`repr`, or a list or record in a text,", "one f-string for each, or `s.call` with a function")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise trace_error(f"`.{name}` of a value that is known only at run time; use s.call with a registered function")


def _refuse(what: str, instead: str) -> NoReturn:
    raise trace_error(f"{what} needs a value that is known only at run time; write {instead} instead")


def lift(value: object) -> Value:
    """A constant, or a list with values in it, as a value. TraceError for what is not JSON."""
    match value:
        case Value():
            return value
        case float() if not math.isfinite(value):
            raise trace_error(f"{value} cannot be in a program: JSON has no such number")
        case None | bool() | int() | float() | str():
            return Value(Const(value))
        case list() | tuple():
            items = [lift(item) for item in value]
            if all(isinstance(item.expr, Const) for item in items):
                return Value(Const([item.expr.value for item in items if isinstance(item.expr, Const)]))
            return Value(ListOf(tuple(item.expr for item in items)), [read for item in items for read in item.reads])
        case dict() if all(isinstance(key, str) and not isinstance(item, Value) for key, item in value.items()):
            return Value(Const({key: plain(item) for key, item in value.items()}))
        case _:
            raise trace_error(f"{type(value).__name__!r} cannot be in a program; use texts, numbers, lists and records")


def plain(value: Any) -> Any:
    """A JSON value without anything in it that is known only at run time."""
    lifted = lift(value)
    if not isinstance(lifted.expr, Const):
        raise trace_error("a value that is known only at run time inside a record; set it as a variable instead")
    return lifted.expr.value


def format_text(parts: Sequence[object]) -> Value:
    """The texts of the parts, joined."""
    values = [lift(part) for part in parts]
    return Value(Format(tuple(value.expr for value in values)), [read for value in values for read in value.reads])


def variable(read: Read) -> Value:
    """A variable as it was read."""
    return Value(Var(read.name), [read])


def _compare(left: object, how: Comparison, right: object) -> Value:
    one, other = lift(left), lift(right)
    return Value(Compare(one.expr, how, other.expr), one.reads + other.reads)


def _compute(left: object, how: Arithmetic, right: object) -> Value:
    one, other = lift(left), lift(right)
    return Value(Compute(one.expr, how, other.expr), one.reads + other.reads)
