"""Constants that are computed, and defaults of configuration fields."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from viva.evidence.fact import Fact, Span
from viva.index.facts import FieldFact
from viva.index.resolve import Resolver
from viva.index.trees import identifiers


def constants(resolver: Resolver, files: Sequence[str]) -> Iterator[Fact]:
    """Module and class constants whose value is a number or a formula."""
    for path in files:
        for symbol in ["", *(item.qualname for item in resolver.store.symbols_of(path) if item.kind == "class")]:
            for field in resolver.store.fields_of(path, symbol):
                score = _score(field)
                if score:
                    name = f"{symbol}.{field.name}".lstrip(".")
                    names = (field.name, *sorted(_names(field.value)))
                    span = Span(path, field.line, field.line)
                    yield Fact("constant", name, f"{name} = {field.value}", (span,), names, (), score)


def _score(field: FieldFact) -> float:
    """Formulas before plain numbers, upper case before lower; nothing for anything else."""
    if not field.value or field.how == "self" or (field.how == "module" and not field.name.isupper()):
        return 0.0
    try:
        tree = ast.parse(field.value, mode="eval").body
    except SyntaxError:
        return 0.0
    operators = sum(isinstance(node, ast.BinOp) for node in ast.walk(tree))
    if operators:
        return 3.0 + operators
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int | float) and not isinstance(tree.value, bool):
        return 2.0 if field.name.isupper() else 1.0
    return 2.5 if isinstance(tree, ast.Call) and field.name.isupper() and _has_number(tree) else 0.0


def _has_number(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Constant) and isinstance(node.value, int | float) for node in ast.walk(tree))


def _names(value: str) -> set[str]:
    return identifiers(ast.parse(value, mode="eval"))
