"""Facts of a source by topic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from viva.evidence.chains import call_chains
from viva.evidence.constants import constants
from viva.evidence.fact import Fact, is_test
from viva.evidence.statements import STATEMENTS, statement_facts
from viva.evidence.structures import data_structures
from viva.index.facts import CLASS, FUNCTION, METHOD, Symbol
from viva.index.resolve import Resolver

TOPICS = ("chain", "structure", "invariant", "constant", "failure", "option")
MAX_ROOTS = 400  # functions from which chains are looked for


def mine(resolver: Resolver, topic: str, *, within: Sequence[str] = (), about: str = "", limit: int = 20) -> list[Fact]:
    """The best facts of a topic. `within` are beginnings of paths (all files but tests without one); `about` is a word
    that the fact's title, names or file must contain."""
    files = [path for path in resolver.store.paths() if path.endswith(".py") and _is_within(path, within)]
    found = [fact for fact in _facts(resolver, topic, files, about) if _is_about(fact, about)]
    found.sort(key=lambda fact: (-fact.score, fact.spans[0].file, fact.spans[0].first))
    return _varied(found)[:limit]


def _varied(facts: Sequence[Fact]) -> list[Fact]:
    """First one fact for each place where facts end, then the others: chains that share their tail say the same."""
    seen: set[object] = set()
    first: list[Fact] = []
    rest: list[Fact] = []
    for fact in facts:
        (rest if fact.spans[-1] in seen else first).append(fact)
        seen.add(fact.spans[-1])
    return [*first, *rest]


def _facts(resolver: Resolver, topic: str, files: Sequence[str], about: str) -> Iterator[Fact]:
    if topic in STATEMENTS:
        yield from statement_facts(resolver, topic, files)
    elif topic == "constant":
        yield from constants(resolver, files)
    elif topic == "structure":
        yield from data_structures(resolver, _symbols(resolver, files, (CLASS,), about), owners=bool(about))
    else:
        yield from call_chains(resolver, _symbols(resolver, files, (FUNCTION, METHOD), about)[:MAX_ROOTS])


def _symbols(resolver: Resolver, files: Sequence[str], kinds: Sequence[str], about: str) -> list[Symbol]:
    found = [item for path in files for item in resolver.store.symbols_of(path) if item.kind in kinds]
    return [item for item in found if about.lower() in f"{item.file}::{item.qualname}".lower()]


def _is_within(path: str, within: Sequence[str]) -> bool:
    return any(path.startswith(part) for part in within) if within else not is_test(path)


def _is_about(fact: Fact, about: str) -> bool:
    text = " ".join([fact.title, fact.spans[0].file, *fact.names])
    return about.lower() in text.lower()
