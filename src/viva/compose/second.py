"""What the second systems do: prepared sentences with their quotes (second_systems.yaml)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from viva.bank.schema import Citation, Source, Struct
from viva.bank.yaml_text import read_yaml

FILE = Path(__file__).with_name("second_systems.yaml")


class Prepared(Struct, frozen=True, kw_only=True):
    """One sentence about `repository`, and the lines that show it."""

    module: str
    repository: str
    text: str
    citation: Citation


@cache
def prepared() -> tuple[Prepared, ...]:
    return tuple(read_yaml(FILE, list[Prepared]))


def second_sources() -> list[Source]:
    """The sources that a composed bank names for them."""
    pinned = {item.citation.source: item for item in reversed(prepared())}
    return [
        Source(id=name, role="comparison", repository=item.repository, commit=item.citation.commit, checked=False)
        for name, item in sorted(pinned.items())
    ]
