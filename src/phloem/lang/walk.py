"""Going through a program: the blocks inside a node, what it reads and what it sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from phloem.lang.expr import AnyExpr, names_in, parts_of, with_parts
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


def blocks_of(node: AnyNode) -> tuple[tuple[str, Block], ...]:
    """The blocks directly inside, each with its field's name."""
    match node:
        case Turn() | While():
            return (("body", node.body),)
        case If():
            return (("then", node.then), ("orelse", node.orelse))
        case Fork():
            return (("prefix", node.prefix), *((f"branches[{i}]", each) for i, each in enumerate(node.branches)))
        case Map():
            return (("prefix", node.prefix), ("body", node.body))
        case _:
            return ()


def with_blocks(node: AnyNode, rewrite: Callable[[Block], Block]) -> AnyNode:
    """The node with every block inside it rewritten; itself when nothing changes."""
    match node:
        case Turn() | While():
            return with_fields(node, body=rewrite(node.body))
        case If():
            return with_fields(node, then=rewrite(node.then), orelse=rewrite(node.orelse))
        case Fork():
            return with_fields(node, prefix=rewrite(node.prefix), branches=tuple(map(rewrite, node.branches)))
        case Map():
            return with_fields(node, prefix=rewrite(node.prefix), body=rewrite(node.body))
        case _:
            return node


def exprs_of(node: AnyNode) -> tuple[AnyExpr, ...]:
    """The expressions that the node itself evaluates."""
    match node:
        case Text() | SetVar():
            return (node.value,)
        case Select():
            return (node.choices,)
        case Map():
            return (node.items,)
        case If() | While():
            return (node.condition,)
        case Call():
            return node.args
        case _:
            return ()


def with_exprs(node: AnyNode, rewrite: Callable[[AnyExpr], AnyExpr]) -> AnyNode:
    """The node with its own expressions rewritten."""
    match node:
        case Text() | SetVar():
            return with_fields(node, value=rewrite(node.value))
        case Select():
            return with_fields(node, choices=rewrite(node.choices))
        case Map():
            return with_fields(node, items=rewrite(node.items))
        case If() | While():
            return with_fields(node, condition=rewrite(node.condition))
        case Call():
            return with_fields(node, args=tuple(map(rewrite, node.args)))
        case _:
            return node


def bottom_up(expr: AnyExpr, rewrite: Callable[[AnyExpr], AnyExpr]) -> AnyExpr:
    """Rewrite the innermost expressions first."""
    return rewrite(with_parts(expr, [bottom_up(part, rewrite) for part in parts_of(expr)]))


def placed_nodes(block: Block, place: str = "program.body", depth: int = 1) -> Iterator[tuple[AnyNode, str, int]]:
    """Every node, outer ones first, with its place, such as `program.body[2].then[0]`, and how many blocks it is in."""
    for index, node in enumerate(block):
        here = f"{place}[{index}]"
        yield node, here, depth
        for name, inner in blocks_of(node):
            yield from placed_nodes(inner, f"{here}.{name}", depth + 1)


def places_of(program: Program) -> dict[int, str]:
    """Where a node is in the program as its author wrote it, with file and line where they are known. By site: passes
    move nodes, their sites stay."""
    return {node.site: f"{here} ({node.at})" if node.at else here for node, here, _ in placed_nodes(program.body)}


def nodes_in(block: Block) -> Iterator[AnyNode]:
    """Every node, outer ones first."""
    for node in block:
        yield node
        for _, inner in blocks_of(node):
            yield from nodes_in(inner)


def rewritten(program: Program, rewrite: Callable[[Block], Block]) -> Program:
    """The program with another body; itself when nothing changes."""
    body = rewrite(program.body)
    return program if body == program.body else msgspec.structs.replace(program, body=body)


def reads(node: AnyNode) -> frozenset[str]:
    """Variables that the node itself reads, without its blocks."""
    return frozenset[str]().union(*map(names_in, exprs_of(node)))


def reads_within(block: Block) -> frozenset[str]:
    """Variables that a block reads anywhere."""
    return frozenset[str]().union(*map(reads, nodes_in(block)))


def sets(node: AnyNode) -> frozenset[str]:
    """Variables of this state that the node, or what runs inside it on the same state, sets."""
    match node:
        case Gen() | Select() | Call() | SetVar():
            return frozenset({node.name})
        case Join():
            return frozenset({node.fork})
        case Turn() | While():
            return sets_within(node.body)
        case If():
            return sets_within(node.then) | sets_within(node.orelse)
        case _:
            return frozenset()


def sets_within(block: Block) -> frozenset[str]:
    """Variables that a block may set in its own state."""
    return frozenset[str]().union(*map(sets, block))


def appends(node: AnyNode) -> bool:
    """Whether the node may add to its own state's text."""
    match node:
        case Text() | Gen() | Select() | Turn():
            return True
        case Join():
            return node.append
        case If() | While():
            return any(appends(inner) for _, block in blocks_of(node) for inner in block)
        case _:
            return False


def with_fields(node: AnyNode, **changes: object) -> AnyNode:
    """The node with other fields; itself when nothing changes."""
    changed: AnyNode = msgspec.structs.replace(node, **changes)
    return node if changed == node else changed
