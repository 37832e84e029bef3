"""Static bounds: what a program needs at least and may ask for at most, before it runs. Used for admission."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from phloem.lang.expr import AnyExpr, Const, Format, ListOf, text_of
from phloem.lang.ir import AnyNode, Block, Fork, Gen, If, Join, Map, Program, Select, Text, Turn, While
from phloem.lang.limits import ProgramLimits

CountTokens = Callable[[str], int]


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """`min_state_tokens`: the longest state has at least so many; `max_generated_tokens`, `max_requests` and
    `max_parallel` (requests under way at once) are never exceeded; loops count as often as they may run."""

    min_state_tokens: int
    max_generated_tokens: int
    max_requests: int
    max_parallel: int

    def min_pages(self, tokens_per_page: int) -> int:
        """KV pages that the longest state needs at least."""
        return -(-self.min_state_tokens // tokens_per_page)


class _Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of a block: `added` tokens to its own state and the `peak` over it and its branches, both at least; the rest at
    most."""

    added: int = 0
    peak: int = 0
    generated: int = 0
    requests: int = 0
    parallel: int = 0


def least_tokens(text: str) -> int:
    """What any tokenizer makes of a text at least, when nobody counts better."""
    return 1 if text else 0


def bounds(program: Program, *, limits: ProgramLimits, count: CountTokens = least_tokens) -> Bounds:
    """The program's bounds; `count` tokens of constant text."""
    cost = _Bounder(limits, count).block(program.body)
    return Bounds(
        min_state_tokens=cost.peak,
        max_generated_tokens=cost.generated,
        max_requests=cost.requests,
        max_parallel=max(1, cost.parallel),
    )


class _Bounder:
    def __init__(self, limits: ProgramLimits, count: CountTokens) -> None:
        self._limits, self._count = limits, count

    def block(self, block: Block) -> _Cost:
        """Costs in order; branches that are open run beside what follows, until their join."""
        total = _Cost()
        open_forks: dict[str, int] = {}
        for node in block:
            if isinstance(node, Join):
                open_forks.pop(node.fork, None)
                continue
            cost = self._node(node)
            beside = sum(open_forks.values())
            total = _Cost(
                added=total.added + cost.added,
                peak=max(total.peak, total.added + cost.peak),
                generated=total.generated + cost.generated,
                requests=total.requests + cost.requests,
                parallel=max(total.parallel, beside + cost.parallel),
            )
            if isinstance(node, Fork | Map) and node.parallel:
                open_forks[node.name] = cost.parallel
        return total

    def _node(self, node: AnyNode) -> _Cost:
        match node:
            case Text():
                num_tokens = self._least(node.value)
                return _Cost(added=num_tokens, peak=num_tokens)
            case Gen():
                return _Cost(generated=node.max_tokens, requests=1, parallel=1)
            case Select():
                count = self._num_choices(node)
                each = 2 if node.method == "unconditional_normalized" else 1
                return _Cost(generated=count * each, requests=count * each, parallel=count * each)
            case Turn():
                return self.block(node.body)
            case If():
                then, orelse = self.block(node.then), self.block(node.orelse)
                return _Cost(
                    added=min(then.added, orelse.added),
                    peak=min(then.peak, orelse.peak),
                    generated=max(then.generated, orelse.generated),
                    requests=max(then.requests, orelse.requests),
                    parallel=max(then.parallel, orelse.parallel),
                )
            case While():
                body, times = self.block(node.body), node.max_iterations
                return _Cost(generated=body.generated * times, requests=body.requests * times, parallel=body.parallel)
            case Fork() | Map():
                return self._fork(node)
            case _:
                return _Cost()

    def _fork(self, node: Fork | Map) -> _Cost:
        prefix = self.block(node.prefix)
        if isinstance(node, Fork):
            branches = [self.block(branch) for branch in node.branches]
        else:
            items = node.items.value if isinstance(node.items, Const) else None
            count = len(items) if isinstance(items, list) else self._limits.max_fan_out
            branches = [self.block(node.body)] * count
        peak = max((branch.peak for branch in branches), default=0)
        parallel = [branch.parallel for branch in branches]
        is_sure = isinstance(node, Fork) or isinstance(node.items, Const)  # a list of unknown length may be empty
        return _Cost(
            peak=prefix.added + (peak if is_sure else 0),
            generated=sum(branch.generated for branch in branches),
            requests=sum(branch.requests for branch in branches),
            parallel=sum(parallel) if node.parallel else max(parallel, default=0),
        )

    def _num_choices(self, node: Select) -> int:
        match node.choices:
            case Const([*choices]):
                return len(choices)
            case ListOf(items):
                return len(items)
            case _:
                return self._limits.max_fan_out

    def _least(self, expr: AnyExpr) -> int:
        match expr:
            case Const(value):
                return self._count(text_of(value))
            case Format(parts):
                return 1 if any(isinstance(part, Const) and part.value for part in parts) else 0
            case _:
                return 0
