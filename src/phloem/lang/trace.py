"""`@program`: a Python function over a State, traced into the IR. Traced once; what cannot be traced is a TraceError.

Parameters before `*` are known at run time only; keyword-only ones are known now, and Python may branch on them
(`program.given(k=5)` sets them).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from phloem.lang.errors import ProgramError
from phloem.lang.expr import Var
from phloem.lang.ir import VERSION, Parameter, Program
from phloem.lang.pieces import Said
from phloem.lang.source import rewritten
from phloem.lang.state import Branches, Numbers, State, TypePath
from phloem.lang.traced import Value, format_text, lift, plain
from phloem.lang.verify import verify
from phloem.lang.where import Where, trace_error

_AUTHORS_MISTAKES = (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, NameError, AssertionError)


class TextHelper:
    """What the rewritten source calls (source.py)."""

    def text(self, *parts: Any) -> Any:
        """An f-string: a text when everything in it is known, else a value."""
        shown: list[Any] = []
        for part in parts:
            if isinstance(part, str):
                shown.append(part)
                continue
            value, conversion, spec = part
            if isinstance(value, State | Branches | Said):
                raise trace_error(f"{type(value).__name__!r} in a text; append it, or read a variable: s[...]")
            if isinstance(value, Value) and (conversion != -1 or spec):
                raise trace_error("a conversion or format of a value that is known only at run time; use s.call")
            shown.append(value if isinstance(value, Value) else _formatted(value, conversion, spec))
        return format_text(shown) if any(isinstance(part, Value) for part in shown) else "".join(shown)

    def known(self, value: Any, what: str) -> Any:
        """`value`, unless it is known only at run time."""
        if isinstance(value, Value):
            raise trace_error(
                f"`{what}` looks at a value that is known only at run time; write `with s.If(...)` instead"
            )
        return value

    def state(self, value: Any) -> None:
        """Refuse `x += ...` in a block for anything but a state."""
        if not isinstance(value, State):
            raise trace_error(
                "`+=` on a Python name in a block: Python does it once, however the run goes; use s[...] = s[...] + ..."
            )


class ProgramFunction:
    """A traced function. `trace` gives its IR; `LLM.run` and its kin take it as it is."""

    def __init__(self, function: Callable[..., Any], *, given: Mapping[str, Any] | None = None) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self._function = function
        self._given = dict(given or {})
        self._traced: tuple[Program, dict[TypePath, type]] | None = None

    def given(self, **known: Any) -> ProgramFunction:
        """The program for these keyword-only arguments."""
        return ProgramFunction(self._function, given={**self._given, **known})

    def trace(self) -> Program:
        """The IR. TraceError names file and line of what cannot be captured, and what to write instead."""
        return self._trace()[0]

    @property
    def types(self) -> Mapping[TypePath, type]:
        """Types of the variables, where `gen` was given one."""
        return self._trace()[1]

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise trace_error(
            f"{self.name} is a program: run it with llm.run({self.name}, ...); @part makes a helper function"
        )

    def _trace(self) -> tuple[Program, dict[TypePath, type]]:
        if self._traced is None:
            self._traced = _traced(self._function, self._given)
        return self._traced


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A helper function of programs: takes the state, and may use f-strings."""
    made: list[Callable[..., Any]] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(rewritten(function, TextHelper()))
        return made[0](*args, **kwargs)

    return call


def _traced(function: Callable[..., Any], given: Mapping[str, Any]) -> tuple[Program, dict[TypePath, type]]:
    numbers = Numbers()
    state = State(numbers)
    parameters, arguments = _parameters(function, state, given)
    run = rewritten(function, TextHelper())
    try:
        returned = run(state, **arguments)
    except ProgramError:
        raise
    except _AUTHORS_MISTAKES as error:
        raise trace_error(f"{type(error).__name__}: {error}", at=_line_of(error, function)) from error
    outputs = _outputs(state, returned, at=_start(function).short)
    program = Program(
        version=VERSION, name=function.__name__, parameters=parameters, body=state.close(), outputs=outputs
    )
    try:
        verify(program)
    except ProgramError as error:
        raise trace_error(error.message, at=_start(function)) from error
    return program, numbers.types


def _parameters(
    function: Callable[..., Any], state: State, given: Mapping[str, Any]
) -> tuple[tuple[Parameter, ...], dict[str, Any]]:
    """(the program's parameters, what the function is called with while it is traced)."""
    _, *others = inspect.signature(function).parameters.values()
    unknown = given.keys() - {each.name for each in others if each.kind is each.KEYWORD_ONLY}
    if unknown:
        raise trace_error(f"{function.__name__} has no keyword-only {', '.join(sorted(unknown))}", at=_start(function))
    parameters, arguments = [], {}
    for each in others:
        match each.kind:
            case each.KEYWORD_ONLY:
                if each.default is each.empty and each.name not in given:
                    raise trace_error(f"{each.name} must be known: use .given({each.name}=...)", at=_start(function))
                arguments[each.name] = given.get(each.name, each.default)
            case each.POSITIONAL_OR_KEYWORD:
                required = each.default is each.empty
                default = None if required else plain(each.default)
                parameters.append(Parameter(name=each.name, required=required, default=default))
                arguments[each.name] = state[each.name]
            case _:
                raise trace_error(f"a program takes no * or positional-only {each.name}", at=_start(function))
    return tuple(parameters), arguments


def _outputs(state: State, returned: Any, *, at: str) -> tuple[str, ...] | None:
    """Names of the variables that the function returns; what is not a variable becomes one."""
    match returned:
        case None | State():
            return None
        case dict():
            return tuple(_output(state, value, name, at) for name, value in returned.items())
        case tuple() | list():
            return tuple(_output(state, value, f"result_{index}", at) for index, value in enumerate(returned))
        case _:
            return (_output(state, returned, "result", at),)


def _output(state: State, value: Any, name: str, at: str) -> str:
    lifted = lift(value)
    expr = state.expression(lifted)
    if isinstance(expr, Var) and (expr.name == name or name.startswith("result")):
        return expr.name
    state.assign(name, lifted, at=at)
    return name


def _formatted(value: Any, conversion: int, spec: str) -> str:
    converters: dict[int, Callable[[Any], str]] = {115: str, 114: repr, 97: ascii}
    return format(converters[conversion](value) if conversion in converters else value, spec)


def _start(function: Callable[..., Any]) -> Where:
    return Where(function.__code__.co_filename, function.__code__.co_firstlineno)


def _line_of(error: Exception, function: Callable[..., Any]) -> Where:
    """The innermost line of the author's file."""
    found = _start(function)
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == Path(found.file):
            found = Where(found.file, trace.tb_lineno)
        trace = trace.tb_next
    return found
