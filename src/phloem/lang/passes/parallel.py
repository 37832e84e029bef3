"""Independent generations at once: branches run side by side, and what follows a fork does not wait for them.

Each Join sinks to just before the first node that needs it, so that two forks which do not read each other's records
run together, and the program's own state goes on meanwhile.
"""

from __future__ import annotations

import msgspec

from phloem.lang.ir import AnyNode, Block, Fork, Join, Map, Program
from phloem.lang.passes.context import PassContext
from phloem.lang.walk import appends, nodes_in, reads_within, rewritten, sets, with_blocks


def parallel(program: Program, context: PassContext) -> Program:
    """The pass."""
    return rewritten(program, _block)


def _block(block: Block) -> Block:
    nodes: list[AnyNode] = []
    for node in block:
        inner = with_blocks(node, _block)
        nodes.append(msgspec.structs.replace(inner, parallel=True) if isinstance(inner, Fork | Map) else inner)
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if isinstance(node, Join):
            place = index
            while place + 1 < len(nodes) and _may_pass(node, nodes[place + 1]):
                nodes[place] = nodes[place + 1]
                place += 1
            nodes[place] = node
    return tuple(nodes)


def _may_pass(join: Join, node: AnyNode) -> bool:
    """Whether the join may come after `node`."""
    if join.fork in reads_within((node,)) or join.fork in sets(node):
        return False
    if any(isinstance(each, Fork | Map) and each.name == join.fork for each in nodes_in((node,))):
        return False
    return not (join.append and (appends(node) or isinstance(node, Fork | Map)))
