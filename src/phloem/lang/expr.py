"""Expressions: what a program can say about values without a model. Pure, total up to a ProgramError, bounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from phloem.lang.errors import LimitExceeded, ProgramError

MAX_INTEGER = 1 << 53
"""Integers beyond are not exact in every JSON reader."""

Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "starts with", "ends with"]
Arithmetic = Literal["+", "-", "*"]


class Expr(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
    """Root of the expressions."""


class Const(Expr, frozen=True, tag="const"):
    """A JSON value."""

    value: Any


class Var(Expr, frozen=True, tag="var"):
    """The value of a variable or parameter."""

    name: str


class Item(Expr, frozen=True, tag="item"):
    """One item of a list, or one field of a record."""

    of: AnyExpr
    key: AnyExpr


class Format(Expr, frozen=True, tag="format"):
    """The texts of the parts, joined."""

    parts: tuple[AnyExpr, ...]


class ListOf(Expr, frozen=True, tag="list"):
    """A list of values."""

    items: tuple[AnyExpr, ...]


class Compare(Expr, frozen=True, tag="compare"):
    """A comparison; `in` also looks for a text in a text."""

    left: AnyExpr
    how: Comparison
    right: AnyExpr


class Logic(Expr, frozen=True, tag="logic"):
    """`and`, `or` of all, or `not` of the one argument."""

    how: Literal["and", "or", "not"]
    args: tuple[AnyExpr, ...]


class Compute(Expr, frozen=True, tag="compute"):
    """Arithmetic on numbers; `+` also joins two texts or two lists."""

    left: AnyExpr
    how: Arithmetic
    right: AnyExpr


AnyExpr = Const | Var | Item | Format | ListOf | Compare | Logic | Compute

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
    "starts with": lambda a, b: a.startswith(b),
    "ends with": lambda a, b: a.endswith(b),
}


def evaluate(expr: AnyExpr, variables: Mapping[str, Any], *, place: str, max_chars: int) -> Any:
    """The value of `expr`. ProgramError, naming `place`, for what the values do not allow."""

    def value_of(part: AnyExpr) -> Any:
        return evaluate(part, variables, place=place, max_chars=max_chars)

    match expr:
        case Const(value):
            return value
        case Var(name):
            if name not in variables:
                raise ProgramError(f"{place}: variable {name!r} has no value here", field=place)
            return variables[name]
        case Item(of, key):
            return _item(value_of(of), value_of(key), place)
        case Format(parts):
            return _joined((text_of(value_of(part)) for part in parts), place, max_chars)
        case ListOf(items):
            return [value_of(item) for item in items]
        case Compare(left, how, right):
            return _compare(value_of(left), how, value_of(right), place)
        case Logic("not", args):
            return not value_of(args[0])
        case Logic("and", args):
            return all(value_of(arg) for arg in args)
        case Logic(_, args):
            return any(value_of(arg) for arg in args)
        case Compute(left, how, right):
            return _compute(value_of(left), how, value_of(right), place, max_chars)


def text_of(value: Any) -> str:
    """A value as it stands in a prompt: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parts_of(expr: AnyExpr) -> tuple[AnyExpr, ...]:
    """The expressions directly inside."""
    match expr:
        case Item(of, key):
            return (of, key)
        case Format(parts):
            return parts
        case ListOf(items):
            return items
        case Compare(left, _, right) | Compute(left, _, right):
            return (left, right)
        case Logic(_, args):
            return args
        case Const() | Var():
            return ()


def with_parts(expr: AnyExpr, parts: Sequence[AnyExpr]) -> AnyExpr:
    """The same expression over other parts, as many as `parts_of` gives."""
    match expr:
        case Item():
            return Item(parts[0], parts[1])
        case Format():
            return Format(tuple(parts))
        case ListOf():
            return ListOf(tuple(parts))
        case Compare():
            return Compare(parts[0], expr.how, parts[1])
        case Compute():
            return Compute(parts[0], expr.how, parts[1])
        case Logic():
            return Logic(expr.how, tuple(parts))
        case Const() | Var():
            return expr


def names_in(expr: AnyExpr) -> frozenset[str]:
    """Variables that `expr` reads."""
    if isinstance(expr, Var):
        return frozenset({expr.name})
    return frozenset[str]().union(*map(names_in, parts_of(expr)))


def show_expr(expr: AnyExpr) -> str:
    """As an author would write it."""
    match expr:
        case Const(value):
            return json.dumps(value, ensure_ascii=False)
        case Var(name):
            return name
        case Item(of, key):
            return f"{show_expr(of)}[{show_expr(key)}]"
        case Format(parts):
            shown = (part.value if isinstance(part, Const) else f"{{{show_expr(part)}}}" for part in parts)
            return 'f"' + "".join(map(text_of, shown)).replace("\n", "\\n") + '"'
        case ListOf(items):
            return f"[{', '.join(map(show_expr, items))}]"
        case Compare(left, how, right) | Compute(left, how, right):
            return f"({show_expr(left)} {how} {show_expr(right)})"
        case Logic("not", args):
            return f"not {show_expr(args[0])}"
        case Logic(how, args):
            return f"({f' {how} '.join(map(show_expr, args))})"


def _item(of: Any, key: Any, place: str) -> Any:
    try:
        return of[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ProgramError(
            f"{place}: {_kind(of)} has no item {json.dumps(key, ensure_ascii=False)[:80]}", field=place
        ) from error


def _compare(left: Any, how: Comparison, right: Any, place: str) -> bool:
    try:
        return _COMPARE[how](left, right)
    except (TypeError, AttributeError) as error:
        raise ProgramError(f"{place}: cannot ask whether {_kind(left)} {how} {_kind(right)}", field=place) from error


def _compute(left: Any, how: Arithmetic, right: Any, place: str, max_chars: int) -> Any:
    if how == "+" and isinstance(left, str) and isinstance(right, str):
        return _bounded(left + right, place, max_chars)
    if how == "+" and isinstance(left, list) and isinstance(right, list):
        return left + right
    if not (_is_number(left) and _is_number(right)):
        raise ProgramError(f"{place}: cannot compute {_kind(left)} {how} {_kind(right)}", field=place)
    result = left + right if how == "+" else left - right if how == "-" else left * right
    if abs(result) > MAX_INTEGER:
        raise LimitExceeded(f"{place}: a number beyond {MAX_INTEGER}", field=place)
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bounded(text: str, place: str, max_chars: int) -> str:
    if len(text) > max_chars:
        raise LimitExceeded(f"{place}: a text of more than {max_chars} characters", field=place)
    return text


def _joined(texts: Iterable[str], place: str, max_chars: int) -> str:
    """Stops at the bound, not after it: the parts may be many copies of one long text."""
    kept, num_chars = [], 0
    for text in texts:
        num_chars += len(text)
        if num_chars > max_chars:
            raise LimitExceeded(f"{place}: a text of more than {max_chars} characters", field=place)
        kept.append(text)
    return "".join(kept)


def _kind(value: Any) -> str:
    kinds = {str: "a text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "a record"}
    return kinds.get(type(value), "nothing")
