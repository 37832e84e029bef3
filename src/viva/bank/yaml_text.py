"""YAML text to plain values, with the line of each value, so that a message can say where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from viva.errors import BankError

T = TypeVar("T")


def read_yaml(path: Path, kind: type[T]) -> T:
    """The file as a `kind`. A missing file, broken YAML, a doubled key or a wrong type is a BankError with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BankError(f"{path}: cannot be read: {error}", field=str(path)) from error
    return parse_yaml(text, kind, name=str(path))


def parse_yaml(text: str, kind: type[T], *, name: str) -> T:
    root = compose(text, name=name)
    try:
        for node in _doubled_keys(root):
            raise BankError(f"{name}:{_line(node)}: the key {node.value!r} stands here twice", field=name)
        return msgspec.convert(yaml.load(text, Loader=yaml.CSafeLoader), kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `")
        message += "; docs/bank.schema.json lists the values" if message.startswith("Invalid enum") else ""
        place = place.rstrip("`").removeprefix("$").lstrip(".")
        raise BankError(f"{name}:{_line(_at(root, place))}: {place or 'the file'}: {message}", field=name) from error
    except yaml.YAMLError as error:
        raise BankError(f"{name}: no plain YAML: {' '.join(str(error).split())}", field=name) from error
    except (ValueError, RecursionError) as error:  # a date that is none, an alias inside itself
        raise BankError(f"{name}: no plain YAML: {error}", field=name) from error


def compose(text: str, *, name: str) -> yaml.Node:
    """The tree of nodes, which know their lines."""
    try:
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise BankError(f"{name}:{line}: no valid YAML: {error.problem or error.context}", field=name) from error
    except yaml.YAMLError as error:
        raise BankError(f"{name}: no valid YAML: {error}", field=name) from error
    if root is None:
        raise BankError(f"{name}: the file is empty", field=name)
    return root


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _doubled_keys(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
            yield from _doubled_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _doubled_keys(item)


def _at(node: yaml.Node, place: str) -> yaml.Node:
    """The node at a path such as `answer.flow[2]`, or the nearest above it."""
    for part in place.replace("[", ".[").split("."):
        below = _child(node, part)
        if below is None:
            return node
        node = below
    return node


def _child(node: yaml.Node, part: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and part.startswith("[") and part[1:-1].isdigit():
        index = int(part[1:-1])
        return node.value[index] if index < len(node.value) else None
    return None


def plain(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    return (
        str(yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True))
        .removesuffix("\n...\n")
        .rstrip("\n")
    )
