"""Calls that a static call graph cannot see, as the bank declares them."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from viva.bank.schema import Dispatch
from viva.index.calls import Call, Function, dotted
from viva.index.facts import Symbol
from viva.verify.scope import Scope


class Dispatches:
    """The declared dispatches of a question, and which of them its pseudo-code uses."""

    def __init__(self, declared: Sequence[Dispatch], scope: Scope) -> None:
        self._declared = declared
        self._scope = scope
        self._used: set[int] = set()

    def match(self, caller: str, call: Call) -> int | None:
        """The declaration, by its number, that a call of the pseudo-code goes by."""
        for number, item in enumerate(self._declared):
            callees = (item.callee, item.callee.rpartition(".")[2])
            if same_name(item.caller, caller) and (call.text in callees or call.name == callees[1]):
                self._used.add(number)
                return number
        return None

    def trouble(self, number: int, real: Function, symbol: Symbol) -> str | None:
        """Why a declaration does not hold: its `via` is not in the caller, or its callee is nowhere."""
        item = self._declared[number]
        kinds = ast.Attribute | ast.Name | ast.Call | ast.Subscript
        texts = {dotted(node) for node in ast.walk(real) if isinstance(node, kinds)}
        if item.via not in texts and item.via.removesuffix("()") not in texts:
            return f"dynamic: {symbol.qualname} ({symbol.file}:{symbol.line}) has no {item.via!r} to go through"
        name = item.callee.removeprefix("self.")
        if any(resolver.find(name) for resolver in self._scope.resolvers.values()) or self._scope.is_declared(name):
            return None
        return f"dynamic: {problem}" if (problem := self._scope.trouble_with(name)) else None

    def unused(self) -> list[str]:
        """Declarations that no call of the pseudo-code goes by."""
        left = [item for number, item in enumerate(self._declared) if number not in self._used]
        return [f"dynamic: the pseudo-code has no call of {item.callee!r} in {item.caller!r}" for item in left]


def same_name(declared: str, qualname: str) -> bool:
    """Whether `run` or `Scheduler.run` is meant by `Scheduler.run`."""
    return declared == qualname or qualname.endswith(f".{declared}") or declared.endswith(f".{qualname}")
