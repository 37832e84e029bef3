"""Which function of the source each def of the pseudo-code abridges."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import msgspec

from viva.index.calls import Function
from viva.index.facts import CLASS, Symbol
from viva.index.resolve import Resolver

FILE_COMMENT = re.compile(r"#\s*file:\s*(\S+?)(?:::\S*)?\s*$")


class Abridged(msgspec.Struct, frozen=True):
    """One def of the pseudo-code with the definitions it can stand for (usually one; an overloaded name has several).
    `owner` is the class it is written in."""

    node: Function
    name: str
    symbols: tuple[Symbol, ...]
    resolver: Resolver
    owner: Symbol | None = None


class Outline(msgspec.Struct):
    """What the pseudo-code consists of. `troubles` are (line, message)."""

    abridged: list[Abridged]
    invented: list[Function]  # defs that `locals` declares
    constants: list[tuple[Symbol | None, ast.Assign | ast.AnnAssign]]  # with the class they stand in
    loose: list[ast.stmt]  # statements outside of any def
    troubles: list[tuple[int, str]]
    num_comments: int


def file_comments(text: str) -> dict[int, str]:
    """The lines of `# file: path` comments, and the paths."""
    found = {line: FILE_COMMENT.search(comment) for line, comment in comments(text)}
    return {line: match[1] for line, match in found.items() if match}


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each comment."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    except (tokenize.TokenError, IndentationError):
        return  # what cannot be parsed is reported by the parser


class Outliner:
    """Reads the outline of one pseudo-code. `files` are the cited ones: they win where a name is defined twice."""

    def __init__(self, text: str, tree: ast.Module, *, locals_: frozenset[str], foreign: dict[str, Resolver],
                 subject: Resolver, files: list[str]) -> None:  # fmt: skip
        self._file_comments = file_comments(text)
        self._locals, self._foreign = locals_, foreign
        self._subject, self._files = subject, files
        self.outline = Outline([], [], [], [], [], sum(1 for _ in comments(text)))
        for node in tree.body:
            self._top(node)

    def _top(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef):
            self._class(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._function(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            self.outline.constants.append((None, node))
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
            self.outline.loose.append(node)

    def _trouble(self, node: ast.stmt, message: str) -> None:
        self.outline.troubles.append((node.lineno, message))

    def _where(self, node: ast.stmt, name: str) -> tuple[Resolver, list[str] | None] | None:
        """The source and the files in which to look for a top-level name; None after a trouble."""
        resolver = self._foreign.get(name, self._subject)
        above = [line for line in self._file_comments if line <= node.lineno]
        if not above:
            return resolver, None
        path = self._file_comments[max(above)]
        for candidate in [resolver, *self._foreign.values()]:
            found = [file for file in candidate.store.paths() if file == path or file.endswith(f"/{path}")]
            if found:
                return candidate, found
        self._trouble(node, f"`# file: {path}`: the source has no such file")
        return None

    def _candidates(self, node: ast.stmt, name: str, *, classes: bool) -> tuple[Resolver, list[Symbol]] | None:
        where = self._where(node, name)
        if where is None:
            return None
        resolver, files = where
        found = [item for item in resolver.find(name, files=files) if (item.kind == CLASS) == classes]
        if not classes:
            found = [item for item in found if "<locals>" not in item.qualname]
            top = [item for item in found if item.qualname == name]
            found = top or found
        cited = [item for item in found if item.file in self._files]
        found = cited or found
        if not found:
            kind = "class" if classes else "function"
            near = resolver.nearest(name) if classes else self._near_functions(resolver, name)
            place = f" in {files[0]}" if files else ""
            self._trouble(node, f"the source has no {kind} {name!r}{place}{nearest(near)}")
            return None
        if len({(item.file, item.qualname) for item in found}) > 1:
            listed = ", ".join(f"{item.file}::{item.qualname}" for item in found[:4])
            self._trouble(
                node, f"{name!r} is defined {len(found)} times ({listed}): say which with `# file: path` above it"
            )
            return None
        return resolver, found

    def _near_functions(self, resolver: Resolver, name: str) -> list[str]:
        inside = {item.name for path in self._files for item in resolver.store.symbols_of(path)}
        return resolver.nearest(name, among=inside)

    def _class(self, node: ast.ClassDef) -> None:
        found = self._candidates(node, node.name, classes=True)
        if found is None:
            return
        resolver, symbols = found
        members = resolver.members(symbols[0])
        for item in node.body:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                self._method(item, resolver, symbols[0])
            elif isinstance(item, ast.Assign | ast.AnnAssign):
                self.outline.constants.append((symbols[0], item))
            elif isinstance(item, ast.ClassDef):
                inner = members.get(item.name)
                if isinstance(inner, Symbol) and inner.kind == CLASS:
                    for below in item.body:
                        if isinstance(below, ast.FunctionDef | ast.AsyncFunctionDef):
                            self._method(below, resolver, inner)
                else:
                    self._trouble(item, f"{node.name} has no class {item.name!r} in it")
            elif not isinstance(item, ast.Pass) and not _is_text(item):
                self.outline.loose.append(item)

    def _method(self, node: Function, resolver: Resolver, owner: Symbol) -> None:
        member = resolver.members(owner).get(node.name)
        if not isinstance(member, Symbol):
            if node.name in self._locals:
                self.outline.invented.append(node)
                return
            near = resolver.nearest(node.name, among=resolver.members(owner))
            self._trouble(
                node, f"{owner.qualname} ({owner.file}:{owner.line}) has no method {node.name!r}{nearest(near)}"
            )
            return
        every = tuple(resolver.store.symbols_of(member.file, member.qualname))
        self.outline.abridged.append(Abridged(node, f"{owner.qualname}.{node.name}", every, resolver, owner))

    def _function(self, node: Function) -> None:
        if node.name in self._locals:
            self.outline.invented.append(node)
            return
        found = self._candidates(node, node.name, classes=False)
        if found is not None:
            resolver, symbols = found
            owner = resolver.class_around(symbols[0].file, symbols[0].qualname)
            self.outline.abridged.append(Abridged(node, symbols[0].qualname, tuple(symbols), resolver, owner))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def nearest(names: list[str]) -> str:
    return f"; nearest: {', '.join(names)}" if names else ""
