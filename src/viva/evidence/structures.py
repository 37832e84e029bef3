"""Data structures with their owners: who writes and who reads each field."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from viva.evidence.fact import Fact, Span, is_test, whole
from viva.index.extract import parse
from viva.index.facts import CLASS, FieldFact, Symbol
from viva.index.resolve import Resolver

MIN_FIELDS = 4
MAX_FIELDS_LISTED = 12


def data_structures(resolver: Resolver, symbols: Iterable[Symbol], *, owners: bool) -> Iterator[Fact]:
    """The classes that hold fields. With `owners`, each field with the functions that write and read it."""
    for symbol in symbols:
        if symbol.kind != CLASS:
            continue
        members = resolver.members(symbol).values()
        fields = [item for item in members if isinstance(item, FieldFact) and item.file == symbol.file]
        if len(fields) < MIN_FIELDS:
            continue
        detail = [_line(field) for field in fields[:MAX_FIELDS_LISTED]]
        if owners:
            detail = [line for field in fields for line in (_line(field), *_uses(resolver, field))]
        typed = sum(bool(field.type) for field in fields)
        first, last = min(field.line for field in fields), max(field.line for field in fields)
        span = Span(symbol.file, first, last) if last - first < 120 else whole(symbol)
        yield Fact(
            topic="structure", symbol=symbol.qualname, title=f"{symbol.qualname}: {len(fields)} fields, {typed} typed",
            spans=(span,), names=(symbol.qualname, *(field.name for field in fields)), detail=tuple(detail),
            score=len(fields) + typed,
        )  # fmt: skip


def _line(field: FieldFact) -> str:
    type_text = f": {field.type}" if field.type else ""
    value = f" = {field.value}" if field.value else ""
    return f"{field.name}{type_text}{value}  ({field.file}:{field.line})"


def _uses(resolver: Resolver, field: FieldFact) -> list[str]:
    """The functions that write, and how many that read, an attribute of this name. Two classes may share a name: the
    lines say what was seen, not of which object."""
    writers: dict[str, None] = {}
    readers: dict[str, None] = {}
    for path in resolver.store.files_with_name([field.name])[field.name]:
        if is_test(path):
            continue
        for function, node in attributes(parse(resolver.store.text(path)), field.name):
            where = writers if isinstance(node.ctx, ast.Store) else readers
            where[f"{path}:{node.lineno} {function}"] = None
    lines = [f"    written {place}" for place in list(writers)[:8]]
    return [*lines, f"    read in {len(readers)} places: {', '.join(list(readers)[:3])}"] if readers else lines


def attributes(tree: ast.AST, name: str) -> Iterator[tuple[str, ast.Attribute]]:
    """Every attribute of a name with the qualified name of the function around it."""
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    while stack:
        node, around = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            around = f"{around}.{node.name}".lstrip(".")
        elif isinstance(node, ast.Attribute) and node.attr == name:
            yield around, node
        stack.extend((child, around) for child in reversed(list(ast.iter_child_nodes(node))))
