"""What the host knows about a step when it launches attention: the integers that size grids and buffers. No torch.

A captured graph is replayed for every step that fits its shape, so each number is an upper bound that the device may
undercut: real lengths are read on the device and cut the work short.
"""

from __future__ import annotations

from dataclasses import dataclass

FIXED_CHUNK = 1024  # keys a partial result covers in deterministic mode, at absolute positions 0, 1024, 2048 ...


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one step, in rows, tokens and groups.

    The first `num_decode_rows` rows have at most one query token each; the other rows have any number up to
    `max_query_len`. `max_context_len` bounds context_len of every row. `num_shared` counts the groups of rows with a
    common prefix; `max_group_rows` bounds the rows of one group (0: not known, every decode row).
    `deterministic`: split every row's keys at fixed positions, so that a row's result does not depend on the others.
    """

    num_rows: int
    num_tokens: int
    num_decode_rows: int
    max_query_len: int
    max_context_len: int
    num_shared: int = 0
    max_group_rows: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        assert 0 <= self.num_decode_rows <= self.num_rows, "decode rows are leading rows of the step"
        assert self.max_group_rows <= self.num_rows, "a group holds rows of the step"

    @property
    def num_extend_rows(self) -> int:
        """Rows that may have several query tokens."""
        return self.num_rows - self.num_decode_rows

    @property
    def num_fixed_chunks(self) -> int:
        """Most partial results a row has in deterministic mode."""
        return max(1, -(-self.max_context_len // FIXED_CHUNK))
