"""The passes by name, in their order; the verifier runs after each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from phloem.lang.errors import ProgramError
from phloem.lang.ir import Program
from phloem.lang.passes.context import PassContext
from phloem.lang.passes.dead import dead
from phloem.lang.passes.factor import factor
from phloem.lang.passes.fold import fold
from phloem.lang.passes.force import force
from phloem.lang.passes.hoist import hoist
from phloem.lang.passes.order import order
from phloem.lang.passes.parallel import parallel
from phloem.lang.verify import verify

Pass = Callable[[Program, PassContext], Program]

PASSES: dict[str, Pass] = {
    "fold": fold,
    "force": force,
    "dead": dead,
    "hoist": hoist,
    "factor": factor,
    "parallel": parallel,
    "order": order,
}
ALL_PASSES = frozenset(PASSES)


def rewrite(program: Program, passes: Collection[str], context: PassContext) -> Program:
    """The program after all of `passes`."""
    *_, (_, last) = stages(program, passes, context)
    return last


def stages(program: Program, passes: Collection[str], context: PassContext) -> Iterator[tuple[str, Program]]:
    """(pass, the program after it), the program as it was first. ProgramError for an unknown pass."""
    for name in passes:
        if name not in PASSES:
            raise ProgramError(f"passes: no pass {name!r}; there are {', '.join(PASSES)}", field="passes")
    yield "source", program
    for name, run in PASSES.items():
        if name in passes:
            program = run(program, context)
            verify(program, limits=context.limits, functions=context.functions)
            yield name, program
