"""One def of the pseudo-code against one definition of the source: parameters, names, calls and their order."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from viva.index.calls import Function, dotted
from viva.index.facts import Symbol
from viva.index.trees import identifiers
from viva.verify.abridged import Abridged, nearest
from viva.verify.edges import Declared, Edges, Trouble
from viva.verify.scope import BUILTINS


class Definition:
    """The result is in `troubles` and the counts."""

    def __init__(self, abridged: Abridged, symbol: Symbol, real: Function, declared: Declared) -> None:
        self._name, self._node, self._resolver = abridged.name, abridged.node, abridged.resolver
        self._owner, self._symbol, self._real, self._declared = abridged.owner, symbol, real, declared
        self._real_names = identifiers(real)
        self._real_chains = {dotted(node) for node in ast.walk(real) if isinstance(node, ast.Attribute)}
        constants = {repr(node.value) for node in ast.walk(real) if isinstance(node, ast.Constant)}
        self._real_constants = constants | {"None", "True", "False", "Ellipsis"}
        self.troubles: list[Trouble] = []
        self.num_names = self.num_declared = 0
        self._check_parameters()
        self._check_names()
        self.edges = Edges(self._where, abridged, symbol, real, declared)
        self.edges.check()
        self.troubles += self.edges.troubles

    def _say(self, line: int, message: str) -> None:
        self.troubles.append((line, message))

    @property
    def _where(self) -> str:
        return f"{self._name} ({self._symbol.file}:{self._symbol.line}-{self._symbol.end})"

    # --- parameters ---

    def _check_parameters(self) -> None:
        """The parameters are some of the real ones, in their order, with their defaults and annotations if given."""
        real, given = parameters(self._real), parameters(self._node)
        names = list(real)
        last = -1
        for name, (annotation, default) in given.items():
            if name not in real:
                self._say(
                    self._node.lineno, f"{self._where} has no parameter {name!r}{nearest(self._near(name, names))}"
                )
                continue
            if names.index(name) < last:
                self._say(self._node.lineno, f"{self._where} has its parameters in the order {', '.join(names)}")
            last = names.index(name)
            if annotation and annotation != real[name][0]:
                self._say(self._node.lineno, f"{self._where}: {name} is annotated {real[name][0] or 'with nothing'}")
            if default not in ("", "...", real[name][1]):
                self._say(self._node.lineno, f"{self._where}: {name} has the default {real[name][1] or '(none)'}")

    def _near(self, name: str, among: list[str] | set[str]) -> list[str]:
        return self._resolver.nearest(name, among=among)

    # --- names ---

    def _check_names(self) -> None:
        """Whatever the def names, the real function names too; what it reads of an object is read of it there."""
        own = set(parameters(self._node))
        for node in _own_nodes(self._node):
            if isinstance(node, ast.Name):
                if node.id not in own:
                    self._check_name(node.id, node.lineno)
            elif isinstance(node, ast.Attribute):
                self._check_attribute(node)
            elif isinstance(node, ast.keyword) and node.arg:
                self._check_name(node.arg, node.value.lineno)
            elif isinstance(node, ast.Constant) and repr(node.value) not in self._real_constants:
                self._say(node.lineno, f"{node.value!r} is no number or string of {self._where}")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
                self._check_name(node.name or "_", node.lineno)

    def _check_name(self, name: str, line: int) -> None:
        if name in BUILTINS or name == "_":
            return
        if name in self._declared.locals or name in self._declared.foreign:
            self.num_declared += 1
        elif name in self._real_names:
            self.num_names += 1
        else:
            near = nearest(self._near(name, self._real_names))
            self._say(line, f"{name!r} is no name of {self._where}{near}; or declare it in `locals`")

    def _check_attribute(self, node: ast.Attribute) -> None:
        """`a.b` stands in the real function: as it is, at the end of a longer chain, or read of another variable."""
        text = dotted(node)
        head, _, tail = text.partition(".")
        if self._is_read(text) or (head != "self" and self._is_read(tail)):
            self.num_names += 1
        elif {head.removesuffix("[]").removesuffix("()"), node.attr} & (self._declared.locals | self._declared.foreign):
            self.num_declared += 1
        else:
            self._say(node.lineno, self._not_read(text, node.attr))

    def _is_read(self, text: str) -> bool:
        return text in self._real_chains or any(chain.endswith(f".{text}") for chain in self._real_chains)

    def _not_read(self, text: str, name: str) -> str:
        members = self._resolver.members(self._owner) if self._owner is not None else {}
        if self._owner is not None and text == f"self.{name}" and name not in members:
            near = nearest(self._near(name, set(members)))
            return f"{self._owner.qualname} ({self._owner.file}:{self._owner.line}) has no member {name!r}{near}"
        ends = {chain.rpartition(".")[2]: chain for chain in sorted(self._real_chains)}
        near = nearest([ends[end] for end in self._near(name, set(ends))])
        return f"{self._where} does not read {text}{near}"


def parameters(node: Function) -> dict[str, tuple[str, str]]:
    """Each parameter with the texts of its annotation and default; both may be empty."""
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    pairs = list(zip([*plain, *arguments.kwonlyargs], [*defaults, *arguments.defaults, *arguments.kw_defaults]))
    pairs += [(argument, None) for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return {
        argument.arg: (_text(argument.annotation), _text(default))
        for argument, default in pairs
    }  # fmt: skip


def _text(node: ast.expr | None) -> str:
    return ast.unparse(node) if node is not None else ""


def _own_nodes(node: Function) -> Iterator[ast.AST]:
    """Everything in a def but its own name and parameters."""
    for statement in node.body:
        yield from ast.walk(statement)
