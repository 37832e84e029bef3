"""Functions that `Call` may reach: the operator registers them by name; a client only names them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from phloem.lang.errors import FunctionFailed, ProgramError

PureFunction = Callable[..., Any]
Functions = Mapping[str, PureFunction]
"""Name to a function from JSON values to a JSON value: deterministic, without side effects. The built-in ones are also
quick; others run in a thread, and never before the run."""


def call(functions: Functions, name: str, args: Sequence[Any], *, place: str) -> Any:
    """The function's value. ProgramError, naming `place`, for what it does not take; FunctionFailed for any other error
    of an operator's function."""
    if name not in functions:
        raise ProgramError(f"{place}: no function {name!r}; there are {', '.join(sorted(functions))}", field=place)
    try:
        return functions[name](*args)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ProgramError(f"{place}: {name} cannot take these values: {error}", field=place) from error
    except Exception as error:
        message = f"{place}: {name} failed: {type(error).__name__}: {error}"
        raise FunctionFailed(message, field=place) from error


def is_built_in(functions: Functions, name: str) -> bool:
    """Whether `name` is one of ours, not the operator's."""
    return functions.get(name) is BUILT_IN.get(name)


def majority(values: Sequence[Any]) -> Any:
    """The most frequent; the first of those that are equally frequent."""
    keys = [json.dumps(value, sort_keys=True) for value in values]
    [(winner, _)] = Counter(keys).most_common(1)
    return values[keys.index(winner)]


def field(records: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """One field of every record: what the branches of a fork called `name`."""
    return [record[name] for record in records]


def join_texts(texts: Sequence[Any], separator: str = "\n") -> str:
    """The texts with `separator` between them."""
    return separator.join(str(text) for text in texts)


def argmax(values: Sequence[float]) -> int:
    """Position of the largest."""
    return max(range(len(values)), key=lambda index: values[index])


def after(text: str, mark: str) -> str:
    """What follows the last `mark`; everything when there is none."""
    return text.rpartition(mark)[2]


def before(text: str, mark: str) -> str:
    """What precedes the first `mark`; everything when there is none."""
    return text.partition(mark)[0]


def _length(value: Any) -> int:
    return len(value)


def _split_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


BUILT_IN: Functions = MappingProxyType(
    {
        "after": after,
        "argmax": argmax,
        "before": before,
        "field": field,
        "join": join_texts,
        "json": lambda text: json.loads(text),
        "length": _length,
        "lines": _split_lines,
        "lower": lambda text: text.lower(),
        "majority": majority,
        "number": lambda text: float(text) if "." in str(text) else int(text),
        "strip": lambda text: text.strip(),
    }
)
"""Always there."""
