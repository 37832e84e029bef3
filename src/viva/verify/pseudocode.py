"""A question's pseudo-code: each def against the function it abridges, and what stands around the defs."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from viva.bank.schema import Question
from viva.index.calls import Function
from viva.index.facts import FieldFact, Symbol
from viva.index.resolve import Resolver
from viva.index.trees import Trees
from viva.verify.abridged import FILE_COMMENT, Abridged, Outline, Outliner, comments
from viva.verify.claims import name_troubles
from viva.verify.definition import Definition
from viva.verify.dispatch import Dispatches
from viva.verify.edges import Declared, Trouble
from viva.verify.prose import code_words
from viva.verify.report import Tally
from viva.verify.scope import BUILTINS, Scope


def check_pseudocode(question: Question, scope: Scope, trees: Mapping[str, Trees], tally: Tally) -> list[Trouble]:
    """What is wrong, by line of the pseudo-code; the tally gets what was verified."""
    code = question.answer.pseudocode
    try:
        tree = ast.parse(code.text)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = (error.lineno or 1) if isinstance(error, SyntaxError) else 1
        return [(line, f"no Python syntax: {error}")]
    resolvers = {name: scope.resolvers[source] for name, source in code.foreign.items() if source in scope.resolvers}
    declared = Declared(frozenset(code.locals), frozenset(code.foreign), scope, Dispatches(code.dynamic, scope))
    files = [file for cited in scope.cited.values() for file in cited]
    outline = Outliner(
        code.text, tree, locals_=declared.locals, foreign=resolvers, subject=scope.subject, files=files
    ).outline
    troubles = list(outline.troubles)
    for abridged in outline.abridged:
        troubles += _check_def(abridged, declared, trees, tally)
    troubles += [(1, message) for message in declared.dispatches.unused()]
    troubles += _Around(scope, declared.locals, tally).check(outline, tree)
    troubles += _check_foreign(question, scope)
    troubles += _check_comments(code.text, scope)
    return sorted(troubles)


def _check_def(abridged: Abridged, declared: Declared, trees: Mapping[str, Trees], tally: Tally) -> list[Trouble]:
    """A name with several definitions is checked against the one that fits best."""
    source = next(name for name, resolver in declared.scope.resolvers.items() if resolver is abridged.resolver)
    tried = [Definition(abridged, symbol, trees[source].function(symbol), declared) for symbol in abridged.symbols]
    best = min(tried, key=lambda attempt: len(attempt.troubles))
    tally.names += best.num_names
    tally.declared += best.num_declared + best.edges.num_declared
    tally.edges += best.edges.num_edges
    tally.ordered += best.edges.num_ordered
    tally.dynamic += best.edges.num_dynamic
    return best.troubles


def _check_comments(text: str, scope: Scope) -> list[Trouble]:
    """Names in comments resolve like those in prose."""
    troubles: list[Trouble] = []
    for line, comment in comments(text):
        if FILE_COMMENT.search(comment):
            continue
        for message in name_troubles(code_words(comment), scope):
            troubles.append((line, f"comment: {message}"))
    return troubles


def _check_foreign(question: Question, scope: Scope) -> list[Trouble]:
    """A foreign name is in a file of its source that the question cites."""
    troubles: list[Trouble] = []
    for name, source in question.answer.pseudocode.foreign.items():
        if source in scope.resolvers:
            known = name in scope.file_names[source] or bool(scope.resolvers[source].find(name))
        else:
            known = source in scope.cited and name in scope.quoted_names
        if not known:
            troubles.append((1, f"foreign: {name!r} is in no cited file of {source!r}"))
    return troubles


class _Around:
    """What stands outside of the defs that abridge: constants, imports, invented functions, loose statements."""

    def __init__(self, scope: Scope, locals_: frozenset[str], tally: Tally) -> None:
        self._scope, self._locals, self._tally = scope, locals_, tally
        self._troubles: list[Trouble] = []

    def check(self, outline: Outline, tree: ast.Module) -> list[Trouble]:
        if not outline.abridged and not outline.troubles:
            self._troubles.append((1, "no def of the source: write the functions that are abridged"))
        if not outline.num_comments:
            self._troubles.append((1, "no comment says which core logic it shows"))
        for function in outline.invented:
            self._invented(function)
        for statement in outline.loose:
            if any(isinstance(below, ast.Call) for below in ast.walk(statement)):
                message = "a call outside of a def: put it into the def of the function that makes it"
                self._troubles.append((statement.lineno, message))
            self._names(statement)
        for owner, constant in outline.constants:
            self._constant(owner, constant)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                self._import(node)
        return self._troubles

    def _invented(self, node: Function) -> None:
        self._tally.declared += 1
        for statement in node.body:
            self._names(statement)

    def _names(self, node: ast.AST) -> None:
        for below in ast.walk(node):
            if isinstance(below, ast.Name):
                self._name(below.id, below.lineno)
            elif isinstance(below, ast.Attribute):
                self._name(below.attr, below.lineno)

    def _name(self, name: str, line: int) -> None:
        if name in self._locals or name in BUILTINS or self._scope.is_declared(name):
            return
        trouble = self._scope.trouble_with(name)
        if trouble:
            self._troubles.append((line, trouble))

    def _constant(self, owner: Symbol | None, node: ast.Assign | ast.AnnAssign) -> None:
        """A constant of a module or class has the type and value that the source gives it."""
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if not isinstance(target, ast.Name) or target.id in self._locals:
                continue
            fields = self._fields(owner, target.id)
            if not fields:
                where = owner.qualname if owner else "the cited files: module level"
                self._troubles.append((node.lineno, f"{where} has no constant or field {target.id!r}"))
                continue
            self._tally.names += 1
            place = f"{fields[0].file}:{fields[0].line}"
            if isinstance(node, ast.AnnAssign):
                annotation = ast.unparse(node.annotation)
                if not any(field.type in ("", annotation) for field in fields):
                    self._troubles.append((node.lineno, f"{target.id} is annotated {fields[0].type} in {place}"))
            if node.value is not None and _is_literal(node.value):
                value = ast.unparse(node.value)
                if not any(value == field.value or not field.value for field in fields):
                    self._troubles.append((node.lineno, f"{target.id} is {fields[0].value} in {place}"))

    def _fields(self, owner: Symbol | None, name: str) -> list[FieldFact]:
        subject = self._scope.subject
        if owner is not None:
            member = subject.members(owner).get(name)
            return [member] if isinstance(member, FieldFact) else []
        at_module_level = [field for path in self._scope.subject_files for field in subject.store.fields_of(path, "")]
        return [field for field in at_module_level if field.name == name]

    def _import(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        path = self._scope.subject.module_file(module)
        for alias in node.names:
            if path is not None:
                known = _has(self._scope.subject, path, alias.name)
            else:
                known = {module.partition(".")[0], alias.name} <= self._scope.names
            if not known:
                self._troubles.append((node.lineno, f"the source has no {module}.{alias.name}"))


def _has(resolver: Resolver, path: str, name: str) -> bool:
    package = path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    return resolver.in_file(path, name) is not None or resolver.module_file(f"{package}.{name}") is not None


def _is_literal(node: ast.expr) -> bool:
    return not any(isinstance(below, ast.Name | ast.Call | ast.Attribute) for below in ast.walk(node)) and not (
        isinstance(node, ast.Constant) and node.value is Ellipsis
    )
