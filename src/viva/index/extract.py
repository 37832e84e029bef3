"""One file to its facts, with `ast` alone."""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator

from viva.index.calls import Function, calls_in
from viva.index.corpus import LINE_END
from viva.index.facts import (
    CLASS,
    FUNCTION,
    METHOD,
    MODULE,
    CallFact,
    FieldFact,
    FileFacts,
    ImportFact,
    Symbol,
)

MAX_VALUE_CHARS = 240
OR = " | "  # between the values of a field that is assigned in several places
WORD = re.compile(r"[\w./:-]{2,80}")


def extract(path: str, data: bytes) -> FileFacts:
    """The facts of a file; one that is no UTF-8 or does not parse says so in `fault`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _facts(path, data, "", f"no UTF-8: {error.reason} at byte {error.start}" if path.endswith(".py") else "")
    if not path.endswith(".py"):
        return _facts(path, data, text, "")
    try:
        tree = parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" at line {error.lineno}" if isinstance(error, SyntaxError) else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        return _facts(path, data, text, f"does not parse{line}: {reason}")
    return _facts(path, data, text, "", _Reader(path, tree))


def parse(text: str) -> ast.Module:
    """`ast.parse` without its warnings about the source's style."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def signature(node: Function) -> str:
    """`(self, reqs: List[Req]) -> None`, as `ast` writes it."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def _facts(path: str, data: bytes, text: str, fault: str, reader: _Reader | None = None) -> FileFacts:
    shared = {
        "path": path,
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
        "num_lines": len(LINE_END.findall(text)) + (not text.endswith(("\n", "\r")) and bool(text)),
        "text": zlib.compress(text.encode("utf-8"), 1),
    }
    if reader is None:
        return FileFacts(**shared, fault=fault)  # type: ignore[arg-type]
    return FileFacts(
        **shared,  # type: ignore[arg-type]
        symbols=tuple(reader.symbols),
        fields=tuple(reader.fields.values()),
        calls=tuple(reader.calls),
        imports=tuple(reader.imports),
        names=_packed(reader.names),
        strings=_packed(reader.strings),
    )


def _packed(words: Iterable[str]) -> bytes:
    return zlib.compress("\n".join(sorted(words)).encode("utf-8"), 1)


class _Reader:
    """One pass over the definitions of a module, one over all its nodes for names, strings and imports."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.symbols: list[Symbol] = []
        self.fields: dict[tuple[str, str], FieldFact] = {}
        self.calls: list[CallFact] = []
        self.imports: list[ImportFact] = []
        self.names: set[str] = set()
        self.strings: set[str] = set()
        self._path = path
        last = max((node.end_lineno or 1 for node in tree.body), default=1)
        self.symbols.append(Symbol(path, "", MODULE, 1, 1, last))
        self._scope(tree, qualname="", kind=MODULE)
        self._collect(tree)

    def _scope(self, node: ast.Module | ast.ClassDef | Function, *, qualname: str, kind: str) -> None:
        """A module, class or function: its calls, imports and fields, then the scopes below it."""
        calls = calls_in(node.body)
        self.calls += [CallFact(self._path, qualname, seq, call.line, call.text) for seq, call in enumerate(calls)]
        if kind in (MODULE, CLASS):
            self._body_fields(node.body, qualname, "module" if kind == MODULE else "class")
        prefix = "" if kind == MODULE else f"{qualname}." if kind == CLASS else f"{qualname}.<locals>."
        for below in _scopes_below(node):
            if isinstance(below, ast.Import | ast.ImportFrom):
                self._import(below, qualname)
            elif isinstance(below, ast.ClassDef):
                self._class(below, prefix + below.name)
            else:
                self._function(below, prefix + below.name, owner=qualname if kind == CLASS else None)

    def _class(self, node: ast.ClassDef, qualname: str) -> None:
        bases = tuple(ast.unparse(base) for base in node.bases)
        self._symbol(node, qualname, CLASS, "", bases)
        self._scope(node, qualname=qualname, kind=CLASS)

    def _function(self, node: Function, qualname: str, *, owner: str | None) -> None:
        self._symbol(node, qualname, FUNCTION if owner is None else METHOD, signature(node), ())
        self._scope(node, qualname=qualname, kind=FUNCTION)
        if owner is not None:
            self._self_fields(node, owner)

    def _symbol(
        self, node: ast.ClassDef | Function, qualname: str, kind: str, signature: str, bases: tuple[str, ...]
    ) -> None:
        decorators = tuple(ast.unparse(decorator)[:MAX_VALUE_CHARS] for decorator in node.decorator_list)
        begin = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        end = node.end_lineno or node.lineno
        self.symbols.append(Symbol(self._path, qualname, kind, begin, node.lineno, end, signature, bases, decorators))

    def _body_fields(self, body: Iterable[ast.stmt], owner: str, how: str) -> None:
        for node in _statements(body):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                    self._field(owner, name, ast.unparse(annotation), value, node.lineno, how)
                case ast.Assign(targets=targets, value=value):
                    for name in [target.id for target in targets if isinstance(target, ast.Name)]:
                        if name == "__slots__" and how == "class":
                            for slot in _strings_of(value):
                                self._field(owner, slot, "", None, node.lineno, "slots")
                        else:
                            self._field(owner, name, "", value, node.lineno, how)

    def _self_fields(self, node: Function, owner: str) -> None:
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if not parameters or any(
            isinstance(item, ast.Name) and item.id == "staticmethod" for item in node.decorator_list
        ):
            return
        types = {item.arg: ast.unparse(item.annotation) for item in parameters if item.annotation}
        me = parameters[0].arg
        for below in ast.walk(node):
            if isinstance(below, ast.Call):
                self._set_by_name(below, owner, me)
                continue
            for target, type_text, value in _assigned(below, types):
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == me:
                    self._field(owner, target.attr, type_text, value, target.lineno, "self")

    def _set_by_name(self, node: ast.Call, owner: str, me: str) -> None:
        """`setattr(self, "name", value)` and `object.__setattr__(self, "name", value)`."""
        match node:
            case ast.Call(
                func=ast.Name(id="setattr") | ast.Attribute(attr="__setattr__"),
                args=[ast.Name(id=target), ast.Constant(value=str(name)), value],
            ) if target == me:
                self._field(owner, name, "", value, node.lineno, "self")

    def _field(self, owner: str, name: str, type_text: str, value: ast.expr | None, line: int, how: str) -> None:
        """Keep the first assignment, unless a later one has the type; without a type, keep all different values."""
        known = self.fields.get((owner, name))
        text = _short(value) if value is not None else ""
        if known is None or (type_text and not known.type):
            self.fields[owner, name] = FieldFact(self._path, owner, name, type_text, text, line, how)
        elif text and not known.type and _called(text) not in {_called(item) for item in known.value.split(OR)}:
            values = f"{known.value}{OR}{text}" if known.value else text
            self.fields[owner, name] = FieldFact(self._path, owner, name, "", values, known.line, known.how)

    def _import(self, node: ast.Import | ast.ImportFrom, scope: str) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                target = alias.name if alias.asname else alias.name.partition(".")[0]
                self._add_import(scope, alias.asname or target, target, node.lineno)
            return
        base = _absolute(self._path, node)
        for alias in node.names:
            self._add_import(scope, alias.asname or alias.name, f"{base}.{alias.name}", node.lineno)

    def _add_import(self, scope: str, alias: str, target: str, line: int) -> None:
        self.imports.append(ImportFact(self._path, scope, alias, target, line))

    def _collect(self, tree: ast.Module) -> None:
        names, strings = self.names, self.strings
        stack: list[ast.AST] = [tree]
        while stack:
            node = stack.pop()
            kind = type(node)
            if kind is ast.Constant:
                if type(node.value) is str and WORD.fullmatch(node.value):  # type: ignore[attr-defined]
                    strings.add(node.value)  # type: ignore[attr-defined]
                continue
            for key in NAME_FIELDS.get(kind, ()):
                word = node.__dict__.get(key)
                if isinstance(word, str):
                    names.update(word.split("."))
            stack.extend(ast.iter_child_nodes(node))


NAME_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {
    ast.Name: ("id",),
    ast.Attribute: ("attr",),
    ast.arg: ("arg",),
    ast.keyword: ("arg",),
    ast.FunctionDef: ("name",),
    ast.AsyncFunctionDef: ("name",),
    ast.ClassDef: ("name",),
    ast.alias: ("name", "asname"),
    ast.ImportFrom: ("module",),
    ast.ExceptHandler: ("name",),
    ast.MatchAs: ("name",),
    ast.MatchStar: ("name",),
    ast.MatchMapping: ("rest",),
}


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module's or class's own body, through if, try and with."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            parts = [node.body]
            parts += [node.orelse] if isinstance(node, ast.If) else []
            if isinstance(node, ast.Try):
                parts += [node.orelse, node.finalbody, *(handler.body for handler in node.handlers)]
            for part in parts:
                yield from _statements(part)


def _scopes_below(
    node: ast.Module | ast.ClassDef | Function,
) -> Iterator[ast.ClassDef | Function | ast.Import | ast.ImportFrom]:
    """The nearest definitions and imports inside a scope, in the order of the file."""
    stack: list[ast.AST] = list(reversed(node.body))
    while stack:
        below = stack.pop()
        if isinstance(below, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Import | ast.ImportFrom):
            yield below
        elif isinstance(below, ast.stmt | ast.ExceptHandler | ast.match_case):
            stack.extend(reversed(list(ast.iter_child_nodes(below))))


def _assigned(node: ast.AST, types: dict[str, str]) -> Iterator[tuple[ast.expr, str, ast.expr | None]]:
    """The targets of an assignment with type and value, where they are known. `types` are those of the parameters."""
    match node:
        case ast.AnnAssign(target=target, annotation=annotation, value=value):
            yield target, ast.unparse(annotation), value
        case ast.AugAssign(target=target):
            yield target, "", None
        case ast.Assign(targets=targets, value=value):
            given = types.get(value.id, "") if isinstance(value, ast.Name) else ""
            for each in targets:
                if isinstance(each, ast.Tuple | ast.List):
                    yield from ((item, "", None) for item in each.elts)
                else:
                    yield each, given, value


def _called(value: str) -> str:
    return value.partition("(")[0]


def _strings_of(value: ast.expr) -> list[str]:
    items = value.elts if isinstance(value, ast.Tuple | ast.List | ast.Set) else [value]
    return [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def _short(value: ast.expr) -> str:
    """The value as text; nothing for one of many lines."""
    if (value.end_lineno or value.lineno) - value.lineno > 8:
        return ""
    text = ast.unparse(value)
    return text if len(text) <= MAX_VALUE_CHARS else ""


def _absolute(path: str, node: ast.ImportFrom) -> str:
    """The module that `from ... import` names, relative imports resolved."""
    if not node.level:
        return node.module or ""
    parts = path.removesuffix(".py").split("/")
    parts = parts[: len(parts) - node.level]
    return ".".join([*parts, *([node.module] if node.module else [])])
