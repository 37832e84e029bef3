"""Prefix hoisting: of neighbours whose order the author does not mind, those that are always the same come first.

Within a run of commutable texts: constants, then what depends on arguments only, then what depends on the run. Programs
of a batch, and runs of tomorrow, then share a longer prefix. The words are the same; their order is not.
"""

from __future__ import annotations

from itertools import groupby

from phloem.lang.expr import names_in
from phloem.lang.ir import AnyNode, Block, Program, Text
from phloem.lang.passes.context import PassContext
from phloem.lang.walk import rewritten, sets_within, with_blocks


def hoist(program: Program, context: PassContext) -> Program:
    """The pass."""
    parameters = frozenset(parameter.name for parameter in program.parameters) - sets_within(program.body)

    def variability(node: AnyNode) -> int:
        assert isinstance(node, Text)
        names = names_in(node.value)
        return 0 if not names else 1 if names <= parameters else 2

    def block(nodes: Block) -> Block:
        ordered: list[AnyNode] = []
        for is_commutable, run in groupby(nodes, key=lambda node: isinstance(node, Text) and node.commutable):
            neighbours = list(run)
            ordered += sorted(neighbours, key=variability) if is_commutable else neighbours
        return tuple(with_blocks(node, block) for node in ordered)

    return rewritten(program, block)
