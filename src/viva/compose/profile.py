"""What the index knows of one function: calls in order, where they lead, loops, early returns, handlers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import msgspec

from viva.compose.abridge import TELLS
from viva.index.calls import Call, Function, calls_in, nested_functions
from viva.index.facts import CLASS, Symbol
from viva.index.resolve import Resolver
from viva.index.trees import Trees
from viva.verify.edges import CONTAINER_METHODS
from viva.verify.scope import BUILTINS

PLAIN_CHAIN = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
MIN_LINES, MAX_LINES = 12, 70
MIN_CALLS = 4
MIN_LEAD_LINES = 8  # of a function worth being led to


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
        inside = [call for call in self.calls if call.in_loop]
        return min(inside, key=lambda call: call.condition).text if inside else None

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
    loops = [
        (item.lineno, item.end_lineno or item.lineno)
        for item in ast.walk(node)
        if isinstance(item, ast.For | ast.While | ast.AsyncFor)
    ]
    told: dict[str, Told] = {}
    for call in calls_in(node.body):  # in order of evaluation; of equal ones the first
        if _is_telling(call):
            told.setdefault(call.text, _told(call, loops))
    calls = tuple(told.values())
    if len(calls) < MIN_CALLS:
        return None
    leads = [(call.callee, item) for call, found in resolver.callees(symbol) for item in found if call.callee in told]
    return Profile(
        symbol=symbol,
        node=node,
        calls=calls,
        leads=tuple(
            sorted(
                dict.fromkeys(lead for lead in leads if _is_elsewhere(lead[1], symbol)),
                key=lambda lead: lead[1].line - min(lead[1].end, lead[1].line + MAX_LINES),
            )
        ),
        num_returns=_num_inner_returns(node),
        num_branches=sum(isinstance(item, ast.If | ast.IfExp | ast.Match) for item in ast.walk(node)),
        handled=tuple(_handled(node)),
    )


def _is_plain(symbol: Symbol) -> bool:
    return "<locals>" not in symbol.qualname and symbol.qualname.count(".") <= 1 and symbol.name != "__init__"


def _is_telling(call: Call) -> bool:
    """A call by a plain name that does something of its own."""
    parts = call.text.split(".")
    plain = PLAIN_CHAIN.fullmatch(call.text) is not None and len(call.text) > 4 and not call.deferred
    return plain and parts[-1] not in CONTAINER_METHODS | BUILTINS and not set(parts) & set(TELLS)


def _told(call: Call, loops: list[tuple[int, int]]) -> Told:
    in_loop = any(first < call.line <= last for first, last in loops)
    return Told(call.text, call.line, in_loop, bool(call.arms))


def _is_elsewhere(reached: Symbol, symbol: Symbol) -> bool:
    is_long = reached.end - reached.line + 1 >= MIN_LEAD_LINES
    return is_long and reached.file != symbol.file and reached.kind != CLASS and _is_plain(reached)


def _num_inner_returns(node: Function) -> int:
    """The returns of the function itself, but the one it ends with."""
    nested = {id(item) for inner in nested_functions(node) for item in ast.walk(inner)}
    returns = [item for item in ast.walk(node) if isinstance(item, ast.Return) and id(item) not in nested]
    return len(returns) - isinstance(node.body[-1], ast.Return)


def _handled(node: Function) -> Iterator[str]:
    for item in ast.walk(node):
        if isinstance(item, ast.ExceptHandler) and item.type is not None:
            yield ast.unparse(item.type)
