"""Syntax trees of cited files, kept while a bank is verified."""

from __future__ import annotations

import ast

from viva.index.calls import Function
from viva.index.extract import NAME_FIELDS, parse
from viva.index.facts import Symbol
from viva.index.resolve import Resolver


class Trees:
    """The definitions of a source as syntax trees; each file is parsed once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._functions: dict[str, dict[int, Function]] = {}

    def function(self, symbol: Symbol) -> Function:
        """The tree of a function or method."""
        if symbol.file not in self._functions:
            tree = parse(self._resolver.store.text(symbol.file))
            found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
            self._functions[symbol.file] = {node.lineno: node for node in found}
        return self._functions[symbol.file][symbol.line]


def identifiers(node: ast.AST) -> set[str]:
    """Every identifier in a tree."""
    found: set[str] = set()
    for below in ast.walk(node):
        for field in NAME_FIELDS.get(type(below), ()):
            word = below.__dict__.get(field)
            if isinstance(word, str):
                found.update(word.split("."))
    return found


def local_names(node: Function) -> set[str]:
    """The parameters and everything that is assigned in a function."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    found = {argument.arg for argument in every if argument is not None}
    for below in ast.walk(node):
        if isinstance(below, ast.Name) and isinstance(below.ctx, ast.Store):
            found.add(below.id)
        elif isinstance(below, ast.arg):
            found.add(below.arg)
        elif isinstance(below, ast.ExceptHandler) and below.name:
            found.add(below.name)
    return found
