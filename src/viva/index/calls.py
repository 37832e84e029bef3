"""The calls of a function in the order in which Python evaluates them.

Each call carries the arms of the branches it stands in. Two calls in different arms of one branch never follow each
other in one pass, so no order is between them. What follows an `if` whose body returns, raises, breaks or continues
stands in the other arm of that `if`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence

import msgspec

Arms = tuple[tuple[int, int], ...]  # (branch, arm), outermost first
Function = ast.FunctionDef | ast.AsyncFunctionDef

TERMINAL = (ast.Return, ast.Raise, ast.Break, ast.Continue)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Call(msgspec.Struct, frozen=True):
    """One call expression: `text` is what is called, as `self.cache.match`, `make()`, `table[].get`.

    `deferred`: it stands in a lambda, so that its time is unknown; nested defs are functions of their own. `whole` is
    the call with its arguments and `target` what its statement assigns to; both only where details are asked for."""

    text: str
    line: int
    arms: Arms = ()
    deferred: bool = False
    whole: str = ""
    target: str = ""

    @property
    def name(self) -> str:
        return self.text.rpartition(".")[2]


def exclusive(first: Arms, second: Arms) -> bool:
    """Whether the two can never happen in one pass."""
    chosen = dict(first)
    return any(chosen.get(branch, arm) != arm for branch, arm in second)


def dotted(node: ast.expr) -> str:
    """What is called, read, or named, as text: subscripts are `[]`, calls `()`, anything else `?`."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
        case ast.Call(func=func):
            return f"{dotted(func)}()"
        case ast.Subscript(value=value):
            return f"{dotted(value)}[]"
        case ast.Await(value=value):
            return dotted(value)
        case _:
            return "?"


def calls_in(body: Iterable[ast.stmt], *, detailed: bool = False) -> list[Call]:
    """The calls of a body, without those of nested functions and classes."""
    walk = _Walk(detailed=detailed)
    walk.block(list(body), ())
    return walk.calls


def calls_of(function: Function) -> list[Call]:
    """The calls of a function, with details; those of the functions nested in it come too, deferred."""
    calls = calls_in(function.body, detailed=True)
    for node in nested_functions(function):
        below = calls_in(node.body, detailed=True)
        calls += [msgspec.structs.replace(call, deferred=True, arms=()) for call in below]
    return calls


def nested_functions(node: ast.AST) -> list[Function]:
    """Every function inside, at any depth."""
    below = [child for child in ast.walk(node) if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [child for child in below if child is not node]


class _Walk:
    """One pass over a body. Branches are numbered as they are met."""

    def __init__(self, *, detailed: bool) -> None:
        self.calls: list[Call] = []
        self._detailed = detailed
        self._target = ""
        self._num_branches = 0
        self._deferred = 0
        self._visitors: dict[type[ast.AST], Callable[[ast.AST, Arms], None]] = {
            ast.Call: self._call,
            ast.If: self._branch,
            ast.IfExp: self._branch,
            ast.Match: self._match,
            ast.Try: self._try,
            ast.For: self._for,
            ast.AsyncFor: self._for,
            ast.Assign: self._assign,
            ast.AnnAssign: self._assign,
            ast.NamedExpr: self._assign,
            ast.Lambda: self._lambda,
            ast.ListComp: self._comprehension,
            ast.SetComp: self._comprehension,
            ast.GeneratorExp: self._comprehension,
            ast.DictComp: self._comprehension,
            ast.Dict: self._dict,
        }

    def block(self, body: Sequence[ast.stmt], arms: Arms) -> None:
        for statement in body:
            first_branch = self._num_branches
            self.visit(statement, arms)
            if isinstance(statement, ast.If):
                arms = _after(statement, arms, first_branch)

    def visit(self, node: ast.AST, arms: Arms) -> None:
        visitor = self._visitors.get(type(node))
        if visitor is not None:
            visitor(node, arms)
        elif isinstance(node, SCOPES):
            for outside in [*node.decorator_list, *_defaults(node)]:
                self.visit(outside, arms)
        else:
            self._children(node, arms)

    def _children(self, node: ast.AST, arms: Arms) -> None:
        for name in node._fields:
            value = node.__dict__.get(name)
            if isinstance(value, list):
                if value and isinstance(value[0], ast.stmt):
                    self.block(value, arms)
                else:
                    for item in value:
                        if isinstance(item, ast.AST):
                            self.visit(item, arms)
            elif isinstance(value, ast.AST):
                self.visit(value, arms)

    def _call(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.Call)
        self.visit(node.func, arms)
        for argument in [*node.args, *node.keywords]:
            self.visit(argument, arms)
        whole = ast.unparse(node) if self._detailed else ""
        self.calls.append(Call(dotted(node.func), node.lineno, arms, self._deferred > 0, whole, self._target))

    def _branch(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.If | ast.IfExp)
        branch = self._branch_number()
        self.visit(node.test, arms)
        for arm, side in enumerate((node.body, node.orelse)):
            self._side(side, (*arms, (branch, arm)))

    def _side(self, side: list[ast.stmt] | ast.expr, arms: Arms) -> None:
        if isinstance(side, list):
            self.block(side, arms)
        else:
            self.visit(side, arms)

    def _match(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.Match)
        branch = self._branch_number()
        self.visit(node.subject, arms)
        for arm, case in enumerate(node.cases):
            if case.guard is not None:
                self.visit(case.guard, arms)
            self.block(case.body, (*arms, (branch, arm)))

    def _try(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.Try)
        branch = self._branch_number()
        self.block(node.body, arms)
        for arm, handler in enumerate(node.handlers, start=1):
            self.block(handler.body, (*arms, (branch, arm)))
        self.block(node.orelse, (*arms, (branch, 0)))
        self.block(node.finalbody, arms)

    def _for(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.For | ast.AsyncFor)
        self.visit(node.iter, arms)
        self.visit(node.target, arms)
        self.block(node.body, arms)
        self.block(node.orelse, arms)

    def _assign(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is not None:
            outer, self._target = self._target, ast.unparse(targets[0]) if self._detailed else ""
            self.visit(node.value, arms)
            self._target = outer
        for target in targets:
            self.visit(target, arms)

    def _lambda(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.Lambda)
        self._deferred += 1
        self.visit(node.body, arms)
        self._deferred -= 1

    def _comprehension(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp)
        for generator in node.generators:
            self.visit(generator.iter, arms)
            for condition in generator.ifs:
                self.visit(condition, arms)
        for element in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(element, arms)

    def _dict(self, node: ast.AST, arms: Arms) -> None:
        assert isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values):
            if key is not None:
                self.visit(key, arms)
            self.visit(value, arms)

    def _branch_number(self) -> int:
        self._num_branches += 1
        return self._num_branches - 1


def _after(statement: ast.If, arms: Arms, branch: int) -> Arms:
    """The arms of what follows an `if`, one of whose sides ends the pass."""
    body_ends, else_ends = _ends(statement.body), _ends(statement.orelse)
    if body_ends == else_ends:
        return arms
    return (*arms, (branch, 1 if body_ends else 0))


def _ends(body: Sequence[ast.stmt]) -> bool:
    if not body:
        return False
    last = body[-1]
    return isinstance(last, TERMINAL) or (isinstance(last, ast.If) and _ends(last.body) and _ends(last.orelse))


def _defaults(node: ast.AST) -> list[ast.expr]:
    """What a nested def or class evaluates where it stands: defaults, bases."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return [*node.args.defaults, *(default for default in node.args.kw_defaults if default is not None)]
    assert isinstance(node, ast.ClassDef)
    return [*node.bases, *(keyword.value for keyword in node.keywords)]
