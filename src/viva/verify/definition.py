"""One def of the pseudo-code against one definition of the source: parameters, names, calls and their order."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import msgspec

from viva.index.calls import Call, Function, calls_in, calls_of
from viva.index.facts import CLASS, Symbol
from viva.index.resolve import Resolver
from viva.index.trees import identifiers, local_names
from viva.verify.abridged import Abridged, nearest
from viva.verify.dispatch import Dispatches
from viva.verify.order import Matched, check_order
from viva.verify.scope import BUILTINS, Scope

CONTAINER_METHODS = frozenset(
    [
        "append",
        "extend",
        "insert",
        "pop",
        "popleft",
        "appendleft",
        "remove",
        "clear",
        "get",
        "items",
        "keys",
        "values",
        "setdefault",
        "add",
        "discard",
        "update",
        "sort",
        "join",
        "split",
        "strip",
        "format",
        "startswith",
        "endswith",
        "copy",
        "index",
        "count",
    ]
)

Trouble = tuple[int, str]  # line of the pseudo-code, message


class Declared(msgspec.Struct, frozen=True):
    """What the question declares for its pseudo-code. `classes` are those that the pseudo-code itself writes."""

    locals: frozenset[str]
    foreign: frozenset[str]
    scope: Scope
    dispatches: Dispatches


class Definition:
    """The result is in `troubles` and the counts."""

    def __init__(self, abridged: Abridged, symbol: Symbol, real: Function, declared: Declared) -> None:
        self._name, self._node, self._resolver = abridged.name, abridged.node, abridged.resolver
        self._owner, self._symbol, self._real, self._declared = abridged.owner, symbol, real, declared
        self._calls = calls_of(real)
        self._real_names = identifiers(real)
        self._real_locals = local_names(real)
        self._module_names = module_names(abridged.resolver, symbol.file)
        self.troubles: list[Trouble] = []
        self.num_names = self.num_edges = self.num_ordered = self.num_declared = self.num_dynamic = 0
        self._check_parameters()
        self._check_names()
        self._check_calls()

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

    # --- calls ---

    def _check_calls(self) -> None:
        matched: list[Matched] = []
        for call in calls_in(self._node.body):
            found = self._match(call)
            if found is not None:
                matched.append(found)
        for nested in _nested(self._node):
            for call in calls_in(nested.body):
                self._match(msgspec.structs.replace(call, deferred=True))
        ordered = [item for item in matched if not item.call.deferred]
        wrong = check_order(ordered, self._calls)
        self.num_ordered += max(0, len(ordered) - 1) if wrong is None else 0
        if wrong is not None:
            self._say(wrong.later.call.line, self._contradiction(wrong.earlier, wrong.later))

    def _contradiction(self, earlier: Matched, later: Matched) -> str:
        first = ", ".join(str(self._calls[index].line) for index in earlier.candidates[:4])
        second = ", ".join(str(self._calls[index].line) for index in later.candidates[:4])
        if earlier.candidates == later.candidates:
            return f"{later.call.text} is called here again; {self._where} calls it only on line {second}"
        return (
            f"{later.call.text} after {earlier.call.text}: {self._where} never calls them in this order in one pass "
            f"({earlier.call.text} on line {first}, {later.call.text} on line {second})"
        )

    def _match(self, call: Call) -> Matched | None:
        """The real calls that a call can stand for; None if it needs none or has none, which is then a trouble."""
        number = self._declared.dispatches.match(self._name, call)
        if number is not None:
            problem = self._declared.dispatches.trouble(number, self._real, self._symbol)
            if problem:
                self._say(call.line, problem)
            self.num_dynamic += 1
            return None
        candidates = tuple(index for index, real in enumerate(self._calls) if self._same(call.text, real.text))
        if candidates:
            self.num_edges += 1
            return Matched(call, candidates)
        if self._is_free(call):
            return None
        self._say(call.line, self._no_edge(call))
        return None

    def _is_free(self, call: Call) -> bool:
        """Builtins, invented names, other systems' names, and container methods of invented names."""
        head, _, rest = call.text.partition(".")
        head = head.removesuffix("[]").removesuffix("()")
        if not rest and head in BUILTINS and head not in self._real_locals:
            return True
        if head in self._declared.foreign or (not rest and head in self._declared.locals):
            self.num_declared += 1
            return True
        return head in self._declared.locals and call.name in CONTAINER_METHODS and rest == call.name

    def _same(self, given: str, real: str) -> bool:
        """The same text, its last part, or another variable's same method."""
        if given == real or real.endswith(f".{given}"):
            return True
        head, _, tail = given.partition(".")
        variable = head.removesuffix("[]")
        is_variable = variable in self._declared.locals or (
            variable in self._real_locals and variable not in ("self", "cls")
        )
        return bool(tail) and is_variable and (real.partition(".")[2] == tail or real.endswith(f".{tail}"))

    def _no_edge(self, call: Call) -> str:
        through = self._through(call)
        if through:
            return (
                f"{self._where} does not call {call.text} itself, {through}, which it calls, does: write that def too"
            )
        last = {real.name: real.text for real in self._calls}
        near = [last[name] for name in self._near(call.name, set(last))]
        return f"{self._where} has no call of {call.text}{nearest(near)}"

    def _through(self, call: Call) -> str | None:
        """A function that the real one calls and that makes the call."""
        for _, reached in self._resolver.callees(self._symbol):
            for symbol in reached:
                names = {
                    fact.callee.rpartition(".")[2]
                    for fact in self._resolver.store.calls_of(symbol.file, symbol.qualname)
                }
                if call.name in names:
                    return f"{symbol.qualname} ({symbol.file}:{symbol.line})"
        return None


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


def _nested(node: Function) -> list[Function]:
    found = [below for below in ast.walk(node) if isinstance(below, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [below for below in found if below is not node]
