"""Forced text: a generation or selection that can end in one way only is said, not sampled.

Within a generation the engine does the same token by token, where its grammar leaves one continuation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

from phloem.core.errors import PhloemError
from phloem.lang.expr import Const
from phloem.lang.ir import AnyNode, Block, Gen, Program, Select, SetVar, Text
from phloem.lang.passes.context import PassContext
from phloem.lang.values import parse_text
from phloem.lang.walk import nodes_in, rewritten, with_blocks

PLAIN = re.compile(r"[A-Za-z0-9 _,:;!@#%&=<>'\"~`/\n-]+")
"""Regular expressions of these characters match themselves and nothing else."""


def force(program: Program, context: PassContext) -> Program:
    """The pass."""
    sites = count(1 + max((node.site for node in nodes_in(program.body)), default=0))

    def block(nodes: Block) -> Block:
        return tuple(each for node in nodes for each in _forced(with_blocks(node, block), sites))

    return rewritten(program, block)


def _forced(node: AnyNode, sites: Iterator[int]) -> Block:
    text = _only_text(node)
    if text is None or not isinstance(node, Gen | Select):
        return (node,)
    value = text
    if isinstance(node, Gen):
        try:
            value = parse_text(text, node.parse)
        except (ValueError, PhloemError):
            return (node,)
    said = Text(site=node.site, at=node.at, value=Const(text))
    return (said, SetVar(site=next(sites), at=node.at, name=node.name, value=Const(value)))


def _only_text(node: AnyNode) -> str | None:
    """What the node must say, if that is one text. It has at least as many characters as tokens."""
    match node:
        case Select(choices=Const([str(text)])) if text:
            return text
        case Gen(choices=(text,), stop=()) if len(text) <= node.max_tokens:
            return text
        case Gen(regex=str(regex), stop=()) if len(regex) <= node.max_tokens and PLAIN.fullmatch(regex):
            return regex
        case _:
            return None
