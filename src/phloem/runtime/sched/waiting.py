"""The waiting sequences, kept in the policy's order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from phloem.runtime.sched.policy import Policy
from phloem.runtime.sched.sequence import Sequence

RANKED_WINDOW = 128
"""How many of the longest-waiting sequences a policy that ranks by cached prefix looks up in one step."""


class WaitingQueue:
    """Sorted once for policies whose ranks never change; one that ranks by cached prefix re-sorts the front by need."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._entries: list[tuple[tuple[float, ...], int]] = []  # (rank, sequence id)
        self._sequences: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        return (self._sequences[sequence_id] for _, sequence_id in self._entries)

    def add(self, sequence: Sequence) -> None:
        """Join at its rank: a preempted sequence comes back to where its arrival puts it."""
        self._sequences[sequence.sequence_id] = sequence
        insort(self._entries, self._entry(sequence))

    def remove(self, sequence: Sequence) -> None:
        """Leave, from wherever it stands."""
        del self._sequences[sequence.sequence_id]
        del self._entries[bisect_left(self._entries, self._entry(sequence))]

    def in_order(self, num_cached: Callable[[Sequence], int]) -> list[Sequence]:
        """Those to consider now, the first first."""
        if not self._policy.ranks_by_cache:
            return list(self)
        front = [self._sequences[sequence_id] for _, sequence_id in self._entries[:RANKED_WINDOW]]
        ranks = [self._policy.rank(each.candidate._replace(num_cached=num_cached(each))) for each in front]
        order = sorted(range(len(front)), key=ranks.__getitem__)
        return [front[place] for place in order]

    def _entry(self, sequence: Sequence) -> tuple[tuple[float, ...], int]:
        return self._policy.rank(sequence.candidate), sequence.sequence_id
