"""The verifier: a program that passes cannot read a variable without a value, speak outside its turn, or run for ever.

It runs on what a client sent, and after each pass. Every error names the place, such as `program.body[2].then[0]`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import msgspec

from phloem.lang.errors import LimitExceeded, ProgramError
from phloem.lang.expr import AnyExpr, Const, ListOf, Logic, names_in, parts_of
from phloem.lang.ir import (
    VERSION,
    AnyNode,
    Block,
    Call,
    Fork,
    Gen,
    If,
    Join,
    Map,
    Program,
    Select,
    SetVar,
    Text,
    Turn,
    While,
)
from phloem.lang.limits import ProgramLimits
from phloem.lang.walk import exprs_of, nodes_in, placed_nodes, with_blocks

MAX_EXPRESSION_DEPTH = 32
MAX_STOPS = 16

Defined = frozenset[str]


def verify(program: Program, *, limits: ProgramLimits | None = None, functions: Collection[str] | None = None) -> None:
    """ProgramError or LimitExceeded for the first thing that is wrong. Without `functions` any may be called."""
    _check_head(program)
    bounds = limits or ProgramLimits()
    _Sizes(bounds).check(program.body)
    sites = [node.site for node in nodes_in(program.body)]
    if len(set(sites)) < len(sites):
        raise ProgramError("program: two nodes have the same site; leave sites out to have them numbered")
    checker = _Checker(bounds, functions, has_turns=any(isinstance(node, Turn) for node in nodes_in(program.body)))
    parameters = frozenset(parameter.name for parameter in program.parameters)
    defined = checker.block(program.body, "program.body", parameters, in_turn=False)
    for index, name in enumerate(program.outputs or ()):
        if name not in defined:
            raise _missing(name, f"program.outputs[{index}]")


def numbered(program: Program) -> Program:
    """With sites, in the order of the text, where a hand-written program has none."""
    if any(node.site for node in nodes_in(program.body)):
        return program
    counter = iter(range(1, 1 << 40))

    def number(block: Block) -> Block:
        return tuple(with_blocks(msgspec.structs.replace(node, site=next(counter)), number) for node in block)

    return msgspec.structs.replace(program, body=number(program.body))


def _check_head(program: Program) -> None:
    if program.version != VERSION:
        raise ProgramError(f"program.version: {program.version}; this is version {VERSION}", field="program.version")
    names = [parameter.name for parameter in program.parameters]
    for index, name in enumerate(names):
        if name in names[:index]:
            place = f"program.parameters[{index}]"
            raise ProgramError(f"{place}: {name!r} is there twice", field=place)


class _Sizes:
    """Counts before anything else walks the tree."""

    def __init__(self, limits: ProgramLimits) -> None:
        self._limits = limits
        self._num_nodes = 0

    def check(self, body: Block) -> None:
        """Nodes, depth, expressions and constants are within bounds."""
        for node, here, depth in placed_nodes(body):
            if depth > self._limits.max_depth:
                raise LimitExceeded(f"{here}: nested deeper than {self._limits.max_depth}", field=here)
            self._count(here)
            for expr in exprs_of(node):
                self._expr(expr, here, 1)

    def _expr(self, expr: AnyExpr, place: str, depth: int) -> None:
        self._count(place)
        if depth > MAX_EXPRESSION_DEPTH:
            raise LimitExceeded(f"{place}: an expression nested deeper than {MAX_EXPRESSION_DEPTH}", field=place)
        if isinstance(expr, Const) and len(json.dumps(expr.value)) > self._limits.max_value_chars:
            most = self._limits.max_value_chars
            raise LimitExceeded(f"{place}: a constant of more than {most} characters", field=place)
        for part in parts_of(expr):
            self._expr(part, place, depth + 1)

    def _count(self, place: str) -> None:
        self._num_nodes += 1
        if self._num_nodes > self._limits.max_nodes:
            raise LimitExceeded(f"{place}: more than {self._limits.max_nodes} nodes", field=place)


class _Checker:
    """Walks in order with the set of variables that surely have a value."""

    def __init__(self, limits: ProgramLimits, functions: Collection[str] | None, *, has_turns: bool) -> None:
        self._limits = limits
        self._functions = functions
        self._has_turns = has_turns

    def block(
        self, block: Block, place: str, defined: Defined, *, in_turn: bool, outer: Defined = frozenset()
    ) -> Defined:
        """What is defined after it. `outer` are the forks that are open in the same state around it."""
        open_forks: dict[str, str] = {}
        for index, node in enumerate(block):
            here = f"{place}[{index}]"
            for name in sorted(names for expr in exprs_of(node) for names in names_in(expr)):
                if name not in defined:
                    raise _missing(name, here, is_open=name in open_forks)
            for expr in exprs_of(node):
                _check_logic(expr, here)
            match node:
                case Fork() | Map():
                    if node.name in open_forks or node.name in outer:
                        raise ProgramError(f"{here}: fork {node.name!r} is open already; join it first", field=here)
                    open_forks[node.name] = here
                    defined -= {node.name}
                case Join():
                    if open_forks.pop(node.fork, None) is None:
                        raise ProgramError(f"{here}: no open fork {node.fork!r} in this block", field=here)
                case _:
                    pass
            defined = self._node(node, here, defined, in_turn=in_turn, outer=outer | open_forks.keys())
        for name, here in open_forks.items():
            raise ProgramError(f"{here}: fork {name!r} is never joined in its block", field=here)
        return defined

    def _node(self, node: AnyNode, here: str, defined: Defined, *, in_turn: bool, outer: Defined) -> Defined:
        speaks = isinstance(node, Text | Gen | Select) or (isinstance(node, Join) and node.append)
        if speaks and self._has_turns and not in_turn:
            raise ProgramError(f"{here}: a program with turns says everything inside one", field=here)
        match node:
            case Gen():
                _check_gen(node, here)
                return defined | {node.name}
            case Select():
                self._check_choices(node, here)
                return defined | {node.name}
            case Call():
                if self._functions is not None and node.function not in self._functions:
                    known = ", ".join(sorted(self._functions))
                    raise ProgramError(f"{here}.function: no function {node.function!r}; there are {known}", field=here)
                return defined | {node.name}
            case SetVar():
                return defined | {node.name}
            case Join():
                return defined | {node.fork}
            case Turn():
                if in_turn:
                    raise ProgramError(f"{here}: a turn inside a turn", field=here)
                return self.block(node.body, f"{here}.body", defined, in_turn=True, outer=outer)
            case If():
                then = self.block(node.then, f"{here}.then", defined, in_turn=in_turn, outer=outer)
                return then & self.block(node.orelse, f"{here}.orelse", defined, in_turn=in_turn, outer=outer)
            case While():
                self._check_count(node.max_iterations, self._limits.max_iterations, f"{here}.max_iterations")
                self.block(node.body, f"{here}.body", defined, in_turn=in_turn, outer=outer)
                return defined
            case Fork() | Map():
                return self._fork(node, here, defined, in_turn=in_turn)
            case Text():
                return defined

    def _fork(self, node: Fork | Map, here: str, defined: Defined, *, in_turn: bool) -> Defined:
        inside = self.block(node.prefix, f"{here}.prefix", defined, in_turn=in_turn)
        if isinstance(node, Map):
            self.block(node.body, f"{here}.body", inside | {node.item}, in_turn=in_turn)
            return defined
        self._check_count(len(node.branches), self._limits.max_fan_out, f"{here}.branches")
        for index, branch in enumerate(node.branches):
            self.block(branch, f"{here}.branches[{index}]", inside, in_turn=in_turn)
        return defined

    def _check_choices(self, node: Select, here: str) -> None:
        values: list[Any] | None = None
        match node.choices:
            case Const(value):
                if not isinstance(value, list):
                    raise ProgramError(f"{here}.choices: must be a list of texts", field=here)
                values = value
            case ListOf(items):
                values = [item.value if isinstance(item, Const) else "x" for item in items]
            case _:
                return
        check_choices(values, limits=self._limits, place=f"{here}.choices")

    def _check_count(self, count: int, most: int, place: str) -> None:
        if count > most:
            raise LimitExceeded(f"{place}: {count}, but at most {most} are allowed", field=place)
        if count < 1:
            raise ProgramError(f"{place}: at least one is needed", field=place)


def check_choices(values: Any, *, limits: ProgramLimits, place: str) -> None:
    """ProgramError or LimitExceeded unless these are texts to select from."""
    if not isinstance(values, list) or not values or not all(isinstance(each, str) and each for each in values):
        raise ProgramError(f"{place}: must be a list of texts, at least one, none empty", field=place)
    if len(values) > limits.max_fan_out:
        raise LimitExceeded(f"{place}: {len(values)}, but at most {limits.max_fan_out} are allowed", field=place)


def _check_gen(node: Gen, here: str) -> None:
    constraints = {
        "regex": node.regex,
        "json_schema": node.json_schema,
        "choices": node.choices,
        "grammar": node.grammar,
    }
    given = [name for name, value in constraints.items() if value is not None]
    if len(given) > 1:
        raise ProgramError(f"{here}.{given[1]}: there is {given[0]} already; give one constraint", field=here)
    if node.choices is not None and (not node.choices or not all(node.choices)):
        raise ProgramError(f"{here}.choices: must be a list of texts, at least one, none empty", field=here)
    if len(node.stop) > MAX_STOPS or not all(node.stop):
        raise ProgramError(f"{here}.stop: at most {MAX_STOPS} texts, none empty", field=here)


def _check_logic(expr: AnyExpr, here: str) -> None:
    if isinstance(expr, Logic) and (not expr.args or (expr.how == "not" and len(expr.args) != 1)):
        raise ProgramError(f"{here}: {expr.how!r} with {len(expr.args)} arguments", field=here)
    for part in parts_of(expr):
        _check_logic(part, here)


def _missing(name: str, place: str, *, is_open: bool = False) -> ProgramError:
    reason = "its fork is not joined yet" if is_open else "nothing on every way here gives it a value"
    return ProgramError(f"{place}: variable {name!r} has no value here: {reason}", field=place)
