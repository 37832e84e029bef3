"""Depth-first order: when not all branches fit, finish the first with all that is inside it before the next begins, so
that what it left in the cache is used before it has to go."""

from __future__ import annotations

import msgspec

from phloem.lang.ir import Fork, Map, Program
from phloem.lang.passes.context import PassContext
from phloem.lang.walk import nodes_in


def order(program: Program, context: PassContext) -> Program:
    """The pass."""
    has_branches = any(isinstance(node, Fork | Map) for node in nodes_in(program.body))
    return msgspec.structs.replace(program, order="depth_first") if has_branches else program
