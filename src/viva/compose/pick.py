"""The plan: levels and modules over the questions, and for each the functions that have most to tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from viva.compose.areas import is_core, module_of
from viva.compose.profile import MAX_LINES, MIN_LINES, Profile, profile_of
from viva.compose.skeleton import Slot
from viva.errors import VivaError
from viva.index.facts import FUNCTION, METHOD, Symbol
from viva.index.resolve import Resolver
from viva.index.trees import Trees
from viva.verify.premise import present

MAX_LOOKED_AT = 160  # functions of a module that are profiled


def slots(count: int, modules: list[str]) -> list[Slot]:
    """Levels and modules in turn, so that twelve questions have all of both; the last one has a false premise."""
    if count < 1:
        raise VivaError(f"--count {count}: give at least 1", field="--count")
    kinds = ["ordinary"] * (count - 1) + ["false-premise"]
    return [
        Slot(number + 1, 2 + number % 4, modules[number % len(modules)], kinds[number])  # type: ignore[arg-type]
        for number in range(count)
    ]


def profiles(resolver: Resolver, topics: Mapping[str, str]) -> dict[str, list[Profile]]:
    """Per module the functions, best first."""
    trees = Trees(resolver)
    found: dict[str, list[Profile]] = {}
    for module, symbols in _candidates(resolver, topics).items():
        told = [profile_of(symbol, resolver, trees) for symbol in _spread(symbols)]
        kept = [profile for profile in told if profile is not None]
        found[module] = sorted(
            kept, key=lambda one: (-one.score - 3 * is_core(one.symbol.file), one.symbol.file, one.symbol.line)
        )
    return found


def _candidates(resolver: Resolver, topics: Mapping[str, str]) -> dict[str, list[Symbol]]:
    found: dict[str, list[Symbol]] = {module: [] for module in topics}
    for path in resolver.store.paths():
        module = module_of(path)
        if module not in found:
            continue
        for symbol in resolver.store.symbols_of(path):
            right = symbol.kind in (FUNCTION, METHOD) and MIN_LINES <= symbol.end - symbol.line + 1 <= MAX_LINES
            if right and topics[module] in f"{path}::{symbol.qualname}".lower():
                found[module].append(symbol)
    return found


def _spread(symbols: list[Symbol]) -> Iterator[Symbol]:
    """At most MAX_LOOKED_AT, half of them of the core, evenly over the files."""
    symbols = sorted(symbols, key=lambda symbol: not is_core(symbol.file))
    core = sum(is_core(symbol.file) for symbol in symbols)
    for part in (symbols[:core], symbols[core:]):
        yield from part[:: max(1, len(part) // (MAX_LOOKED_AT // 2))]


def foreign_classes(peer: Resolver, subject: Resolver) -> Iterator[str]:
    """Classes that the other system has and the subject has not, under any guise: false premises."""
    for symbol in peer.store.classes():
        is_named = is_core(symbol.file) and len(symbol.name) > 10 and symbol.name[0].isupper()
        if is_named and module_of(symbol.file) in ("execution", "kv-cache") and not present(symbol.name, subject):
            yield symbol.name
