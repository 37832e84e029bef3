"""Dead-generation elimination: what no output depends on is not generated, and not said.

Backwards through each block with what is *live*: the variables that are read later, and whether the text is (by a later
generation on the same state). A program without declared outputs wants everything, so nothing is dead.
"""

from __future__ import annotations

from typing import NamedTuple

from phloem.lang.expr import AnyExpr, Const, Item, Var, parts_of
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
from phloem.lang.passes.context import PassContext
from phloem.lang.walk import blocks_of, exprs_of, nodes_in, reads, rewritten, sets_within, with_fields


class Live(NamedTuple):
    """What a later part of the program still needs of this state."""

    names: frozenset[str]
    text: bool

    def __or__(self, other: object) -> Live:
        assert isinstance(other, Live)
        return Live(self.names | other.names, self.text or other.text)


def dead(program: Program, context: PassContext) -> Program:
    """The pass."""
    if program.outputs is None:
        return program
    outputs = frozenset(program.outputs)
    eliminator = _Eliminator(_fields_read(program, outputs))
    return rewritten(program, lambda body: eliminator.block(body, Live(outputs, False))[0])


class _Eliminator:
    """`fields` are those read of each fork's records; None: all of them."""

    def __init__(self, fields: dict[str, frozenset[str] | None]) -> None:
        self._fields = fields

    def block(self, block: Block, live: Live) -> tuple[Block, Live]:
        """(what is left of it, what is live before it)."""
        kept: list[AnyNode] = []
        joins: dict[str, bool] = {}  # fork -> whether the branches' text is wanted
        for node in reversed(block):
            match node:
                case Join(fork=name):
                    wants_text = node.append and live.text
                    if name not in live.names and not wants_text:
                        continue
                    joins[name] = wants_text
                    live = Live(live.names - {name}, live.text)
                    kept.append(node)
                case Fork(name=name) | Map(name=name):
                    if name in joins:
                        left, live = self._fork(node, live, wants_text=joins.pop(name))
                        kept.append(left)
                case _:
                    remaining, live = self._node(node, live)
                    kept += remaining
        return tuple(reversed(kept)), live

    def _node(self, node: AnyNode, live: Live) -> tuple[Block, Live]:
        match node:
            case Text():
                return ((node,), Live(live.names | reads(node), True)) if live.text else ((), live)
            case Gen() | Select():
                if not live.text and node.name not in live.names:
                    return (), live
                return (node,), Live((live.names - {node.name}) | reads(node), True)
            case Call() | SetVar():
                if node.name not in live.names:
                    return (), live
                return (node,), Live((live.names - {node.name}) | reads(node), live.text)
            case Turn():
                body, before = self.block(node.body, live)
                return ((with_fields(node, body=body),), before) if body or live.text else ((), live)
            case If():
                then, before_then = self.block(node.then, live)
                orelse, before_orelse = self.block(node.orelse, live)
                if not then and not orelse:
                    return (), live
                before = before_then | before_orelse
                return (with_fields(node, then=then, orelse=orelse),), Live(before.names | reads(node), before.text)
            case While():
                return self._loop(node, live)
            case _:
                raise AssertionError(f"{type(node).__name__} is handled with its block")

    def _loop(self, node: While, live: Live) -> tuple[Block, Live]:
        """What is live before the body is live after it, too: again until nothing is added."""
        after = Live(live.names | reads(node), live.text)
        while True:
            body, before = self.block(node.body, after)
            if (grown := after | before) == after:
                break
            after = grown
        return ((with_fields(node, body=body),), after) if body else ((), live)

    def _fork(self, node: Fork | Map, live: Live, *, wants_text: bool) -> tuple[AnyNode, Live]:
        fields = self._fields.get(node.name)
        branches = (node.body,) if isinstance(node, Map) else node.branches
        results = []
        for branch in branches:
            wanted = sets_within(branch) if fields is None else fields
            results.append(self.block(branch, Live(wanted, wants_text)))
        before = Live(frozenset(), False)
        for _, inside in results:
            before = before | inside
        prefix, before = self.block(node.prefix, before)
        own = {node.item} if isinstance(node, Map) else set()
        live = live | Live((before.names - own) | reads(node), before.text)
        bodies = tuple(body for body, _ in results)
        if isinstance(node, Map):
            return with_fields(node, prefix=prefix, body=bodies[0]), live
        return with_fields(node, prefix=prefix, branches=bodies), live


def _fields_read(program: Program, outputs: frozenset[str]) -> dict[str, frozenset[str] | None]:
    """Of each fork whose records are only read as `x[...]["field"]`: those fields. The records of a fork inside a
    branch travel in the branch's own: all their fields count."""
    forks = [node for node in nodes_in(program.body) if isinstance(node, Fork | Map)]
    inside = {each.name for fork in forks for _, block in blocks_of(fork) for each in nodes_in(block)
              if isinstance(each, Fork | Map)}  # fmt: skip
    fields: dict[str, frozenset[str] | None] = {
        fork.name: None if fork.name in outputs | inside else frozenset() for fork in forks
    }

    def note(expr: AnyExpr) -> None:
        match expr:
            case Item(of=Item(of=Var(name), key=key), key=Const(str(field))) if name in fields:
                known = fields[name]
                fields[name] = None if known is None else known | {field}
                note(key)
            case Var(name):
                if name in fields:
                    fields[name] = None
            case _:
                for part in parts_of(expr):
                    note(part)

    for node in nodes_in(program.body):
        for expr in exprs_of(node):
            note(expr)
    return fields
