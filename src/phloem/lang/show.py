"""A program for people: as text, one line a node, and as a Mermaid flowchart."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

from msgspec.structs import asdict

from phloem.lang.expr import Const, show_expr, text_of
from phloem.lang.ir import (
    AnyNode,
    Block,
    Call,
    Fork,
    Gen,
    If,
    Join,
    Map,
    Program,
    Select,
    SetVar,
    Text,
    Turn,
    While,
)
from phloem.lang.passes.bounds import Bounds
from phloem.lang.walk import blocks_of

INDENT = "    "
MAX_LABEL_CHARS = 60
_GEN_DEFAULTS = asdict(Gen(name="x"))
_NOT_SHOWN = ("name", "site", "at")


def show_text(program: Program) -> str:
    """The program, a line a node."""
    names = ", ".join(
        each.name if each.required else f"{each.name}={json.dumps(each.default)}" for each in program.parameters
    )
    outputs = "everything" if program.outputs is None else ", ".join(program.outputs)
    order = ", depth first" if program.order == "depth_first" else ""
    head = f"program {program.name}({names}) -> {outputs}{order}"
    return "\n".join([head, *_lines(program.body, 1)])


def show_bounds(bounds: Bounds) -> str:
    """What the program needs at least and asks for at most."""
    return (
        f"at least {bounds.min_state_tokens} tokens in a state; at most {bounds.max_generated_tokens} generated in "
        f"{bounds.max_requests} requests, {bounds.max_parallel} at once"
    )


def label(node: AnyNode) -> str:
    """A node in one line, without what is inside it."""
    match node:
        case Text(value=Const(value)):
            shown = json.dumps(text_of(value), ensure_ascii=False)
            return f"text {shown}" + (" (commutable)" if node.commutable else "")
        case Text():
            return f"text {show_expr(node.value)}" + (" (commutable)" if node.commutable else "")
        case Gen():
            given = {name: value for name, value in asdict(node).items() if value != _GEN_DEFAULTS[name]}
            options = [f"{name}={_json(value)}" for name, value in given.items() if name not in _NOT_SHOWN]
            return f"{node.name} = gen({', '.join(options)})"
        case Select():
            method = "" if node.method == "token_length_normalized" else f", method={node.method}"
            return f"{node.name} = select({show_expr(node.choices)}{method})"
        case Turn():
            return f"{node.role}:"
        case Fork():
            return f"{node.name} = fork of {len(node.branches)}{_parallel(node)}:"
        case Map():
            return f"{node.name} = map {node.item} over {show_expr(node.items)}{_parallel(node)}:"
        case Join():
            return f"join {node.fork}" + (", append what was said" if node.append else "")
        case If():
            return f"if {show_expr(node.condition)}:"
        case While():
            return f"while {show_expr(node.condition)}, at most {node.max_iterations} times:"
        case Call():
            return f"{node.name} = {node.function}({', '.join(map(show_expr, node.args))})"
        case SetVar():
            return f"{node.name} = {show_expr(node.value)}"


def show_mermaid(program: Program) -> str:
    """A flowchart: blocks are subgraphs, branches lie side by side."""
    drawing = _Drawing()
    lines, _ = drawing.block(program.body, "    ", entry=())
    return "\n".join(["flowchart TD", *lines, *(f"    {edge}" for edge in drawing.edges)])


class _Drawing:
    """Nodes are n1, n2 ... in the order of the text."""

    def __init__(self) -> None:
        self.edges: list[str] = []
        self._numbers = itertools.count(1)

    def block(self, block: Block, indent: str, *, entry: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
        """(lines of a block whose first node follows those of `entry`, the nodes that what comes after it follows)."""
        lines: list[str] = []
        previous = entry
        open_forks: dict[str, tuple[str, ...]] = {}
        for node in block:
            name = f"n{next(self._numbers)}"
            lines.append(f'{indent}{name}["{_escaped(label(node).removesuffix(":"))}"]')
            if isinstance(node, Join):
                previous += open_forks.pop(node.fork, ())
            self.edges += [f"{each} --> {name}" for each in previous]
            ends: tuple[str, ...] = ()
            for field, inner in blocks_of(node):
                if inner:
                    lines.append(f'{indent}subgraph {name}_{field.strip("]").replace("[", "_")} ["{field}"]')
                    inside, last = self.block(inner, indent + INDENT, entry=(name,))
                    lines += [*inside, f"{indent}end"]
                    ends += last
            if isinstance(node, Fork | Map):
                open_forks[node.name] = ends
                ends = ()
            previous = ends or (name,)
        return lines, previous


def _lines(block: Block, depth: int) -> Iterator[str]:
    for node in block:
        yield INDENT * depth + label(node)
        for field, inner in blocks_of(node):
            is_only = isinstance(node, Turn | While) or (isinstance(node, If) and field == "then")
            if (field == "prefix" and not inner) or (field == "orelse" and not inner):
                continue
            if is_only:
                yield from _lines(inner, depth + 1)
            else:
                inside = depth if field == "orelse" else depth + 1
                yield INDENT * inside + ("else" if field == "orelse" else field) + ":"
                yield from _lines(inner, inside + 1)


def _parallel(node: Fork | Map) -> str:
    return ", at once" if node.parallel else ""


def _escaped(text: str) -> str:
    cut = text if len(text) <= MAX_LABEL_CHARS else text[: MAX_LABEL_CHARS - 1] + "…"
    return cut.replace("&", "&amp;").replace('"', "#quot;").replace("<", "&lt;").replace(">", "&gt;")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
