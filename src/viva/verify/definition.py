"""One def of the pseudo-code against one definition of the source: parameters, names, calls and their order."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from viva.index.calls import Function
from viva.index.facts import CLASS, Symbol
from viva.index.resolve import Resolver
from viva.index.trees import identifiers, local_names
from viva.verify.abridged import Abridged, nearest
from viva.verify.edges import Declared, Edges, Trouble
from viva.verify.scope import BUILTINS


class Definition:
    """The result is in `troubles` and the counts."""

    def __init__(self, abridged: Abridged, symbol: Symbol, real: Function, declared: Declared) -> None:
        self._name, self._node, self._resolver = abridged.name, abridged.node, abridged.resolver
        self._owner, self._symbol, self._real, self._declared = abridged.owner, symbol, real, declared
        self._real_names = identifiers(real)
        self._real_locals = local_names(real)
        self._module_names = module_names(abridged.resolver, symbol.file)
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
        own = set(parameters(self._node))
        me = next(iter(parameters(self._node)), None) if self._owner is not None else None
        for node in _own_nodes(self._node):
            if isinstance(node, ast.Name):
                if node.id not in own:
                    self._check_name(node.id, node.lineno)
            elif isinstance(node, ast.Attribute):
                self._check_attribute(node, me)
            elif isinstance(node, ast.keyword) and node.arg:
                self._check_keyword(node.arg, node.value.lineno)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
                self._check_name(node.name or "_", node.lineno)

    def _check_name(self, name: str, line: int) -> None:
        if name in BUILTINS or name == "_":
            return
        if name in self._declared.locals or name in self._declared.foreign:
            self.num_declared += 1
        elif name in self._real_names or name in self._module_names:
            self.num_names += 1
        else:
            near = self._near(name, self._real_names | self._module_names)
            self._say(
                line, f"{name!r} is no name of {self._where} or its module{nearest(near)}; or declare it in `locals`"
            )

    def _check_attribute(self, node: ast.Attribute, me: str | None) -> None:
        owner = self._class_of(node.value, me)
        name = node.attr
        if owner is not None:
            members = self._resolver.members(owner)
            if name in members or (name in self._real_names and self._is_open(owner, me, node)):
                self.num_names += 1
                return
            near = nearest(self._near(name, set(members)))
            self._say(node.lineno, f"{owner.qualname} ({owner.file}:{owner.line}) has no member {name!r}{near}")
        elif name in self._real_names or name in self._declared.scope.names:
            self.num_names += 1
        elif name in self._declared.locals or name in self._declared.foreign:
            self.num_declared += 1
        else:
            near = nearest(self._near(name, self._real_names))
            self._say(node.lineno, f"{name!r} is in no file this question cites, and not in {self._where}{near}")

    def _class_of(self, value: ast.expr, me: str | None) -> Symbol | None:
        """The class whose member an attribute must be: that of self, or a class that is named."""
        if not isinstance(value, ast.Name):
            return None
        if value.id == me:
            return self._owner
        if value.id in self._real_locals or value.id in self._declared.locals | self._declared.foreign:
            return None
        found = self._resolver.in_file(self._symbol.file, value.id)
        return found if isinstance(found, Symbol) and found.kind == CLASS else None

    def _is_open(self, owner: Symbol, me: str | None, node: ast.Attribute) -> bool:
        """Whether a class may have members that the source does not show: it has bases from elsewhere, or the real
        function itself reads this attribute of the same name."""
        of_self = isinstance(node.value, ast.Name) and node.value.id == me
        return of_self or bool(self._resolver.outside_bases(owner))

    def _check_keyword(self, name: str, line: int) -> None:
        if name in self._real_names or name in self._declared.scope.names:
            self.num_names += 1
        elif name in self._declared.locals:
            self.num_declared += 1
        else:
            near = nearest(self._near(name, self._real_names))
            self._say(line, f"{name!r} is no keyword in {self._where} or in a cited file{near}")


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


def module_names(resolver: Resolver, path: str) -> set[str]:
    """What a module's functions can name: its definitions, constants and imports."""
    symbols = {item.qualname for item in resolver.store.symbols_of(path) if item.qualname and "." not in item.qualname}
    return symbols | {field.name for field in resolver.store.fields_of(path, "")} | set(resolver.imports(path))


def _own_nodes(node: Function) -> Iterator[ast.AST]:
    """Everything in a def but its own name and parameters."""
    for statement in node.body:
        yield from ast.walk(statement)
