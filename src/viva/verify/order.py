"""Whether a source allows calls in a given order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from viva.index.calls import Call, exclusive

MAX_STEPS = 50_000  # of the search; functions with many equal calls


class Matched(msgspec.Struct, frozen=True):
    """A call of the pseudo-code and the calls of the source it can stand for, by their index there."""

    call: Call
    candidates: tuple[int, ...]


class Contradiction(msgspec.Struct, frozen=True):
    """`later` cannot follow `earlier`."""

    earlier: Matched
    later: Matched


def check_order(matched: Sequence[Matched], source: Sequence[Call]) -> Contradiction | None:
    """Assign to each call of the pseudo-code one of the source so that what follows there follows here. None if that
    can be done; else the pair at which the best attempt stood still."""
    chosen: list[int] = []
    tried = [0] * len(matched)
    best, blame = -1, (0, 0)
    for _ in range(MAX_STEPS):
        depth = len(chosen)
        if depth == len(matched):
            return None
        found, against = _next(matched, chosen, source, tried[depth])
        if found is not None:
            tried[depth] = found + 1
            chosen.append(matched[depth].candidates[found])
            continue
        if depth > best:
            best, blame = depth, (against, depth)
        if not chosen:
            break
        tried[depth] = 0
        chosen.pop()
    return Contradiction(matched[blame[0]], matched[blame[1]])


def _next(
    matched: Sequence[Matched], chosen: Sequence[int], source: Sequence[Call], start: int
) -> tuple[int | None, int]:
    """The first candidate from `start` on that agrees with what is chosen, and the last one that disagreed."""
    depth = len(chosen)
    against = max(depth - 1, 0)
    for number in range(start, len(matched[depth].candidates)):
        index = matched[depth].candidates[number]
        pairs = ((earlier, matched[earlier].call, matched[depth].call) for earlier in range(depth))
        wrong = (earlier for earlier, a, b in pairs if not _agrees(a, b, chosen[earlier], index, source))
        conflict = next(wrong, None)
        if conflict is None:
            return number, against
        against = conflict
    return None, against


def _agrees(first: Call, second: Call, first_index: int, second_index: int, source: Sequence[Call]) -> bool:
    """Whether two calls, the first written above the second, stand for these two of the source. If both happen in one
    pass here, they must there, in this order. If only one of them happens here, the source may do both in this order,
    or one; the same call in both arms may be one call outside of them there."""
    there, then = source[first_index], source[second_index]
    if there.deferred or then.deferred:
        return True
    apart = exclusive(there.arms, then.arms)
    if exclusive(first.arms, second.arms):
        return apart or first_index <= second_index
    return not apart and first_index < second_index
