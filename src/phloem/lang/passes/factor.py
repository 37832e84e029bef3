"""Common-prefix factoring: what all branches of a fork say first is said once, before they part.

Texts, and turns of nothing but texts, move into the fork's prefix: tokenized once, and known to be shared. What a Map
says before it looks at its item moves likewise. Across a batch the same is done at run time (`Prepared.warm`).
"""

from __future__ import annotations

import msgspec

from phloem.lang.ir import AnyNode, Block, Fork, Map, Program, Text, Turn
from phloem.lang.passes.context import PassContext
from phloem.lang.walk import reads_within, rewritten, with_blocks


def factor(program: Program, context: PassContext) -> Program:
    """The pass."""
    return rewritten(program, _block)


def _block(block: Block) -> Block:
    return tuple(_factored(with_blocks(node, _block)) for node in block)


def _factored(node: AnyNode) -> AnyNode:
    match node:
        case Fork(branches=branches) if len(branches) > 1:
            count = _num_common(branches)
            prefix, rest = branches[0][:count], tuple(branch[count:] for branch in branches)
            return msgspec.structs.replace(node, prefix=node.prefix + prefix, branches=rest) if count else node
        case Map(body=body):
            count = 0
            while count < len(body) and _is_text(body[count]) and node.item not in reads_within((body[count],)):
                count += 1
            return (
                msgspec.structs.replace(node, prefix=node.prefix + body[:count], body=body[count:]) if count else node
            )
        case _:
            return node


def _num_common(branches: tuple[Block, ...]) -> int:
    count = 0
    for nodes in zip(*branches):
        if not all(_is_text(node) for node in nodes) or len({repr(_anonymous(node)) for node in nodes}) > 1:
            break
        count += 1
    return count


def _is_text(node: AnyNode) -> bool:
    return isinstance(node, Text) or (isinstance(node, Turn) and all(isinstance(each, Text) for each in node.body))


def _anonymous(node: AnyNode) -> AnyNode:
    """The node without where it stands."""
    bare: AnyNode = msgspec.structs.replace(node, site=0, at="")
    return with_blocks(bare, lambda block: tuple(map(_anonymous, block)))
