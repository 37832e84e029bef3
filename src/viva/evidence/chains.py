"""Call chains that cross files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from viva.evidence.fact import Fact, Span, is_test
from viva.index.facts import CLASS, CallFact, Symbol
from viva.index.resolve import Resolver

MAX_DEPTH = 7
MIN_FILES = 2

Step = tuple[CallFact, Symbol]


def call_chains(resolver: Resolver, roots: Iterable[Symbol]) -> Iterator[Fact]:
    """From each function the chain through most files, along calls of which the source says what they reach."""
    finder = _Finder(resolver)
    for root in roots:
        chain = finder.longest(root)
        files = list(dict.fromkeys([root.file, *(symbol.file for _, symbol in chain)]))
        if len(files) >= MIN_FILES:
            yield _fact(root, chain, len(files))


class _Finder:
    """Depth-first, each function's callees resolved once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._callees: dict[tuple[str, str], list[Step]] = {}
        self._best: dict[tuple[str, str, int], tuple[Step, ...]] = {}

    def longest(self, symbol: Symbol, depth: int = MAX_DEPTH, above: frozenset[str] = frozenset()) -> tuple[Step, ...]:
        key = (symbol.file, symbol.qualname, depth)
        if key in self._best:
            return self._best[key]
        if not depth:
            return ()
        best: tuple[Step, ...] = ()
        seen = above | {f"{symbol.file}::{symbol.qualname}"}
        for call, reached in self._callees_of(symbol):
            if f"{reached.file}::{reached.qualname}" in seen:
                continue
            chain = ((call, reached), *self.longest(reached, depth - 1, seen))
            if _rank(symbol, chain) > _rank(symbol, best):
                best = chain
        self._best[key] = best
        return best

    def _callees_of(self, symbol: Symbol) -> list[Step]:
        key = (symbol.file, symbol.qualname)
        if key not in self._callees:
            pairs = [(call, item) for call, reached in self._resolver.callees(symbol) for item in reached]
            kept = {
                (item.file, item.qualname): (call, item)
                for call, item in pairs
                if item.kind != CLASS and not is_test(item.file)
            }
            self._callees[key] = list(kept.values())
        return self._callees[key]


def _rank(root: Symbol, chain: tuple[Step, ...]) -> tuple[int, int]:
    """More files first, then fewer steps."""
    return len({root.file, *(symbol.file for _, symbol in chain)}), -len(chain)


def _fact(root: Symbol, chain: tuple[Step, ...], num_files: int) -> Fact:
    callers = [root, *(symbol for _, symbol in chain)]
    steps = [(caller, call) for caller, (call, _) in zip(callers, chain)]
    return Fact(
        topic="chain",
        symbol=root.qualname,
        title=f"{root.qualname} reaches {callers[-1].qualname} through {num_files} files",
        spans=tuple(Span(call.file, max(caller.line, call.line - 3), call.line + 3) for caller, call in steps),
        names=tuple(symbol.qualname for symbol in callers),
        detail=tuple(f"{caller.qualname} -> {call.callee}  ({call.file}:{call.line})" for caller, call in steps),
        score=num_files,
    )
