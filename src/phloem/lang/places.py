"""Where a node is in the program as its author wrote it: passes move nodes, their sites stay."""

from __future__ import annotations

from phloem.lang.ir import Block, Program
from phloem.lang.walk import blocks_of


def places_of(program: Program) -> dict[int, str]:
    """Site to place, such as `program.body[2].then[0]`, with the author's file and line where they are known."""
    places: dict[int, str] = {}

    def note(block: Block, place: str) -> None:
        for index, node in enumerate(block):
            here = f"{place}[{index}]"
            places[node.site] = f"{here} ({node.at})" if node.at else here
            for name, inner in blocks_of(node):
                note(inner, f"{here}.{name}")

    note(program.body, "program.body")
    return places
