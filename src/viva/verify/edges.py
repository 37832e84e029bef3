"""The calls of one def of the pseudo-code against the calls of the function it abridges: edges and order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from viva.index.calls import Call, Function, calls_in, calls_of, nested_functions
from viva.index.facts import Symbol
from viva.index.trees import local_names
from viva.verify.abridged import Abridged, nearest
from viva.verify.dispatch import Dispatches
from viva.verify.order import Matched, check_order
from viva.verify.scope import BUILTINS, Scope

CONTAINER_METHODS = frozenset(
    {
        *("append", "extend", "insert", "pop", "popleft", "appendleft", "remove", "clear", "sort", "index", "count"),
        *("get", "items", "keys", "values", "setdefault", "update", "add", "discard", "copy"),
        *("join", "split", "strip", "format", "startswith", "endswith"),
    }
)

Trouble = tuple[int, str]  # line of the pseudo-code, message


class Declared(msgspec.Struct, frozen=True):
    """What the question declares for its pseudo-code, and the names around it."""

    locals: frozenset[str]
    foreign: frozenset[str]
    scope: Scope
    dispatches: Dispatches


class Edges:
    """Checks the calls of a def, and those of each function nested in it against the nested one of the same name."""

    def __init__(self, where: str, abridged: Abridged, symbol: Symbol, real: Function, declared: Declared) -> None:
        self._where, self._name, self._node = where, abridged.name, abridged.node
        self._resolver, self._symbol, self._real, self._declared = abridged.resolver, symbol, real, declared
        self._locals = local_names(real) - {"self", "cls"}
        self.troubles: list[Trouble] = []
        self.num_edges = self.num_ordered = self.num_declared = self.num_dynamic = 0

    def check(self) -> None:
        self._body(self._node, calls_of(self._real), ordered=True)
        nested = {node.name: node for node in nested_functions(self._real)}
        for node in nested_functions(self._node):
            real = nested.get(node.name)
            self._body(node, calls_of(real or self._real), ordered=real is not None)

    def _body(self, node: Function, real: Sequence[Call], *, ordered: bool) -> None:
        """The calls of one body, without those of the functions nested in it."""
        calls = calls_in(node.body, detailed=True)
        matched = [found for call in calls if (found := self._match(call, real)) is not None]
        in_order = [item for item in matched if ordered and not item.call.deferred]
        wrong = check_order(in_order, real)
        if wrong is None:
            self.num_ordered += max(0, len(in_order) - 1)
        else:
            self.troubles.append((wrong.later.call.line, self._contradiction(wrong.earlier, wrong.later, real)))

    def _contradiction(self, earlier: Matched, later: Matched, real: Sequence[Call]) -> str:
        first = ", ".join(str(real[index].line) for index in earlier.candidates[:4])
        second = ", ".join(str(real[index].line) for index in later.candidates[:4])
        if earlier.candidates == later.candidates:
            return f"{later.call.text} is called here again; {self._where} calls it only on line {second}"
        return (
            f"{later.call.text} after {earlier.call.text}: {self._where} never calls them in this order in one pass "
            f"({earlier.call.text} on line {first}, {later.call.text} on line {second})"
        )

    def _match(self, call: Call, real: Sequence[Call]) -> Matched | None:
        """The real calls that a call can stand for; None if it needs none or has none, which is then a trouble."""
        number = self._declared.dispatches.match(self._name, call)
        if number is not None:
            problem = self._declared.dispatches.trouble(number, self._real, self._symbol)
            self.troubles += [(call.line, problem)] if problem else []
            self.num_dynamic += 1
            return None
        candidates = _narrowed(call, self._candidates(call.text, real), real)
        if candidates:
            self.num_edges += 1
            return Matched(call, candidates)
        if not self._is_free(call):
            self.troubles.append((call.line, self._no_edge(call, real)))
        return None

    def _candidates(self, text: str, real: Sequence[Call]) -> tuple[int, ...]:
        """The real calls of this text; else those that end in it; else, of a variable, the method of any object."""
        exact = tuple(index for index, call in enumerate(real) if call.text == text)
        ending = tuple(index for index, call in enumerate(real) if call.text.endswith(f".{text}"))
        head, _, tail = text.partition(".")
        if exact or ending or not tail or head.removesuffix("[]") not in self._declared.locals | self._locals:
            return exact or ending
        return tuple(index for index, call in enumerate(real) if call.text.endswith(f".{tail}"))

    def _is_free(self, call: Call) -> bool:
        """Builtins, invented names, other systems' names, and container methods of invented names."""
        head, _, rest = call.text.partition(".")
        head = head.removesuffix("[]").removesuffix("()")
        if not rest and head in BUILTINS and head not in self._locals:
            return True
        if head in self._declared.foreign or (not rest and head in self._declared.locals):
            self.num_declared += 1
            return True
        return head in self._declared.locals and call.name in CONTAINER_METHODS and rest == call.name

    def _no_edge(self, call: Call, real: Sequence[Call]) -> str:
        through = self._through(call)
        if through:
            return f"{self._where} does not call {call.text}; {through}, which it calls, does: write that def too"
        last = {item.name: item.text for item in real}
        near = [last[name] for name in self._resolver.nearest(call.name, among=set(last))]
        return f"{self._where} has no call of {call.text}{nearest(near)}"

    def _through(self, call: Call) -> str | None:
        """A function that the real one calls and that makes the call."""
        for _, reached in self._resolver.callees(self._symbol):
            for symbol in reached:
                facts = self._resolver.store.calls_of(symbol.file, symbol.qualname)
                if call.name in {fact.callee.rpartition(".")[2] for fact in facts}:
                    return f"{symbol.qualname} ({symbol.file}:{symbol.line})"
        return None


def _narrowed(call: Call, candidates: tuple[int, ...], real: Sequence[Call]) -> tuple[int, ...]:
    """Of several real calls those that assign to the same name, then those with the same arguments, if any do."""
    same_target = tuple(index for index in candidates if call.target and real[index].target == call.target)
    candidates = same_target or candidates
    same_arguments = tuple(index for index in candidates if real[index].whole == call.whole)
    return same_arguments or candidates
