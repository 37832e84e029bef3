"""Claims on fields and signatures against the index."""

from __future__ import annotations

import ast

from viva.bank.schema import Field, Signature
from viva.errors import LookupFailed
from viva.index.facts import CLASS, FieldFact, Symbol
from viva.index.resolve import Resolver

PROPERTIES = ("property", "cached_property", "functools.cached_property", "abstractproperty")


def check_field(field: Field, resolver: Resolver, *, cited: list[str]) -> str | None:
    """What is wrong with a field; None if its owner has it, with the type and default that are given."""
    candidates = _owner_fields(field, resolver, cited=cited)
    if isinstance(candidates, str):
        return candidates
    problems = [_field_problem(field, found) for found in candidates]
    return None if None in problems else problems[0]


def _owner_fields(field: Field, resolver: Resolver, *, cited: list[str]) -> list[FieldFact | Symbol] | str:
    """The fields of that name in the classes, or the file, that the owner can be; or what is wrong."""
    if resolver.store.has_file(field.owner):
        found: list[FieldFact | Symbol] = [
            item for item in resolver.store.fields_of(field.owner, "") if item.name == field.name
        ]
        known = {item.name for item in resolver.store.fields_of(field.owner, "")}
    else:
        classes = [item for item in resolver.find(field.owner) if item.kind == CLASS]
        classes = [item for item in classes if item.file in cited] or classes
        if not classes:
            near = resolver.nearest(field.owner)
            return f"{field.owner}: no such class in {resolver.store.name}{_nearest(near)}"
        if len({(item.file, item.qualname) for item in classes}) > 1:
            listed = ", ".join(f"{item.file}::{item.qualname}" for item in classes[:4])
            return f"{field.owner} is defined {len(classes)} times: write {listed}"
        members = [resolver.members(item) for item in classes]
        found = [item[field.name] for item in members if field.name in item]
        known = set().union(*members)
    if not found:
        return f"{field.owner} has no field {field.name!r}{_nearest(resolver.nearest(field.name, among=known))}"
    return found


def _field_problem(field: Field, found: FieldFact | Symbol) -> str | None:
    name = f"{field.owner}.{field.name} ({found.file}:{found.line})"
    if isinstance(found, Symbol):
        if not any(item in PROPERTIES for item in found.decorators):
            return f"{name} is a {found.kind}, no field"
        type_text, value = found.signature.partition(" -> ")[2], ""
    else:
        type_text, value = found.type, found.value
    if field.type is not None and _normal(field.type) != _normal(type_text):
        return f"{name} has the type {type_text or '(no annotation: leave `type` out)'}, not {field.type}"
    if field.default is not None and _normal(field.default) != _normal(value):
        return f"{name} has the value {value or '(none)'}, not {field.default}"
    return None


def check_signature(claim: Signature, resolver: Resolver, *, cited: list[str]) -> str | None:
    """What is wrong with a signature; None if a definition of that name has exactly it."""
    found = resolver.find(claim.symbol)
    found = [item for item in found if item.file in cited] or found
    if not found:
        try:
            resolver.find_one(claim.symbol)
        except LookupFailed as error:
            return error.message
    real = [_constructor(item, resolver) if item.kind == CLASS else item for item in found]
    wanted = _normal_signature(claim.signature)
    if wanted is None:
        return f"{claim.symbol}: {claim.signature!r} is no signature; write it as `(self, x: int = 0) -> None`"
    signatures = [item.signature for item in real if item is not None]
    if wanted in signatures:
        return None
    place = f"{found[0].file}:{found[0].line}"
    return (
        f"{claim.symbol} ({place}) has the signature {signatures[0] if signatures else '(none)'}, not {claim.signature}"
    )


def _constructor(symbol: Symbol, resolver: Resolver) -> Symbol | None:
    member = resolver.members(symbol).get("__init__")
    return member if isinstance(member, Symbol) else None


def _normal(text: str) -> str:
    try:
        return ast.unparse(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError):
        return text.strip()


def _normal_signature(text: str) -> str | None:
    try:
        node = ast.parse(f"def f{text.strip()}: ...").body[0]
    except (SyntaxError, ValueError, IndexError):
        return None
    if not isinstance(node, ast.FunctionDef):
        return None
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def _nearest(names: list[str]) -> str:
    return f"; nearest: {', '.join(names)}" if names else ""
