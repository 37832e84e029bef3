"""What the index knows of one function: calls in order, where they lead, loops, early returns, handlers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import msgspec

from viva.compose.abridge import TELLS
from viva.index.calls import Call, Function, calls_in
from viva.index.facts import CLASS, Symbol
from viva.index.resolve import Resolver
from viva.index.trees import Trees
from viva.verify.edges import CONTAINER_METHODS
from viva.verify.scope import BUILTINS

PLAIN_CHAIN = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
MIN_LINES, MAX_LINES = 12, 70
MIN_CALLS = 4


class Told(msgspec.Struct, frozen=True):
    """One call worth telling. `condition`: it stands in a branch or behind an early return."""

    text: str
    line: int
    in_loop: bool
    condition: bool


class Profile(msgspec.Struct, frozen=True):
    """`leads` are calls with the function of another file that each reaches."""

    symbol: Symbol
    node: Function
    calls: tuple[Told, ...]
    leads: tuple[tuple[str, Symbol], ...]
    num_returns: int
    num_branches: int
    handled: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.symbol.qualname

    @property
    def loop_call(self) -> str | None:
        return next((call.text for call in self.calls if call.in_loop), None)

    @property
    def score(self) -> float:
        """How much there is to ask."""
        leads = len({symbol.file for _, symbol in self.leads})
        return 3.0 * min(leads, 2) + 2.0 * bool(self.loop_call) + bool(self.handled) + min(len(self.calls), 10) / 5


def profile_of(symbol: Symbol, resolver: Resolver, trees: Trees) -> Profile | None:
    """None where there is too little to tell, or too much."""
    if not MIN_LINES <= symbol.end - symbol.line + 1 <= MAX_LINES or not _is_plain(symbol):
        return None
    if len(resolver.store.symbols_of(symbol.file, symbol.qualname)) > 1:
        return None  # overloaded
    node = trees.function(symbol)
    loops = [(item.lineno, item.end_lineno or item.lineno) for item in ast.walk(node) if _is_loop(item)]
    told = {call.text: _told(call, loops) for call in reversed(calls_in(node.body)) if _is_telling(call)}
    calls = tuple(sorted(told.values(), key=lambda call: call.line))
    if len(calls) < MIN_CALLS:
        return None
    leads = [(call.callee, item) for call, found in resolver.callees(symbol) for item in found if call.callee in told]
    returns = [item for item in ast.walk(node) if isinstance(item, ast.Return)]
    return Profile(
        symbol=symbol,
        node=node,
        calls=calls,
        leads=tuple(dict.fromkeys(lead for lead in leads if _is_elsewhere(lead[1], symbol))),
        num_returns=sum(item.lineno < node.body[-1].lineno for item in returns),
        num_branches=sum(isinstance(item, ast.If | ast.IfExp | ast.Match) for item in ast.walk(node)),
        handled=tuple(_handled(node)),
    )


def _is_plain(symbol: Symbol) -> bool:
    return "<locals>" not in symbol.qualname and symbol.qualname.count(".") <= 1 and symbol.name != "__init__"


def _is_loop(node: ast.AST) -> bool:
    return isinstance(node, ast.For | ast.While | ast.AsyncFor)


def _is_telling(call: Call) -> bool:
    """A call by a plain name that does something of its own."""
    parts = call.text.split(".")
    plain = PLAIN_CHAIN.fullmatch(call.text) is not None and len(call.text) > 4 and not call.deferred
    return plain and parts[-1] not in CONTAINER_METHODS | BUILTINS and not set(parts) & set(TELLS)


def _told(call: Call, loops: list[tuple[int, int]]) -> Told:
    in_loop = any(first < call.line <= last for first, last in loops)
    return Told(call.text, call.line, in_loop, bool(call.arms))


def _is_elsewhere(reached: Symbol, symbol: Symbol) -> bool:
    return reached.file != symbol.file and reached.kind != CLASS and _is_plain(reached)


def _handled(node: Function) -> Iterator[str]:
    for item in ast.walk(node):
        if isinstance(item, ast.ExceptHandler) and item.type is not None:
            yield ast.unparse(item.type)
