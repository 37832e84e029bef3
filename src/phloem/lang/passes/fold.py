"""Constant folding: what can be known before the run is computed once, here.

Expressions of constants become constants, variables that surely hold one are replaced by it, calls of pure functions on
constants are made, branches that cannot be taken and texts that say nothing disappear. Texts are never merged: each is
tokenized on its own, whatever passes run. What would fail is left to fail where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from phloem.lang.errors import ProgramError
from phloem.lang.expr import AnyExpr, Const, Var, evaluate, parts_of, text_of
from phloem.lang.functions import call, is_built_in
from phloem.lang.ir import AnyNode, Block, Call, Fork, If, Join, Map, Program, SetVar, Text, While
from phloem.lang.passes.context import PassContext
from phloem.lang.walk import blocks_of, bottom_up, rewritten, sets, sets_within, with_blocks, with_exprs

Known = Mapping[str, Const]


def fold(program: Program, context: PassContext) -> Program:
    """The pass."""
    folder = _Folder(context)
    return rewritten(program, lambda body: folder.block(body, {}))


class _Folder:
    def __init__(self, context: PassContext) -> None:
        self._context = context

    def block(self, block: Block, known: Known) -> Block:
        """The block, given the variables known at its beginning."""
        folded: list[AnyNode] = []
        values = dict(known)
        for node in block:
            replacement = self._node(node, values)
            for each in replacement:
                for name in sets(each) | ({each.name} if isinstance(each, Fork | Map) else set()):
                    values.pop(name, None)
                if isinstance(each, SetVar) and isinstance(each.value, Const):
                    values[each.name] = each.value
            folded += replacement
        return tuple(folded)

    def _node(self, node: AnyNode, known: Known) -> Block:
        if isinstance(node, While):
            inside = {name: value for name, value in known.items() if name not in sets_within(node.body)}
            node = with_exprs(node, lambda expr: self._expr(expr, inside))
            if isinstance(node, While) and _is_constant(node.condition, False):
                return ()
            return (with_blocks(node, lambda body: self.block(body, inside)),)
        node = with_exprs(node, lambda expr: self._expr(expr, known))
        match node:
            case Text(value=Const(value)) if text_of(value) == "":
                return ()
            case Call() if self._is_known(node):
                return (self._called(node),)
            case If(condition=Const(value)):
                return self.block(node.then if value else node.orelse, known)
            case Map():
                inside = {name: value for name, value in known.items() if name != node.item}
                return (with_blocks(node, lambda body: self.block(body, inside)),)
            case Join():
                return (node,)
            case _:
                return (with_blocks(node, lambda body: self.block(body, known)) if blocks_of(node) else node,)

    def _expr(self, expr: AnyExpr, known: Known) -> AnyExpr:
        def rewrite(part: AnyExpr) -> AnyExpr:
            if isinstance(part, Var):
                return known.get(part.name, part)
            if isinstance(part, Const) or not all(isinstance(inner, Const) for inner in parts_of(part)):
                return part
            try:
                value = evaluate(part, {}, place="program", max_chars=self._context.limits.max_value_chars)
            except ProgramError:
                return part
            return Const(value)

        return bottom_up(expr, rewrite)

    def _is_known(self, call: Call) -> bool:
        """A built-in function of constants. An operator's may be slow, and is not ours to repeat."""
        return is_built_in(self._context.functions, call.function) and all(isinstance(arg, Const) for arg in call.args)

    def _called(self, node: Call) -> AnyNode:
        values: list[Any] = [arg.value for arg in node.args if isinstance(arg, Const)]
        try:
            value = call(self._context.functions, node.function, values, place="program")
            msgspec.json.encode(value)
        except (ProgramError, TypeError, ValueError):
            return node
        return SetVar(site=node.site, at=node.at, name=node.name, value=Const(value))


def _is_constant(expr: AnyExpr, truth: bool) -> bool:
    return isinstance(expr, Const) and bool(expr.value) is truth
