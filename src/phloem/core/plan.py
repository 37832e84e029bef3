"""StepPlan: what the scheduler decided for one step. Differences, not the whole state; integers only.

A worker applies a plan in field order: rows end, rows start, pages are copied, pages are added, tokens are computed.
"""

from __future__ import annotations

import msgspec

from phloem.core.request import SamplingParams

NO_LOGITS, LAST_LOGITS, ALL_LOGITS = 0, 1, 2
"""What a row wants of its logits: nothing; a token sampled after its last one; that and prompt log-probabilities."""


class RowStart(msgspec.Struct, frozen=True, array_like=True):
    """A sequence gets a device row, with everything the worker must know about it.

    `token_ids` are all known tokens (prompt and, after a preemption, what was generated); `num_computed` of them are
    already in `pages` (a cached prefix). `num_prompt_tokens` divides prompt from generated. `seed` is resolved.
    """

    row: int
    sequence_id: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_computed: int
    pages: tuple[int, ...]
    sampling: SamplingParams
    seed: int


class PageCopy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Copy the whole of page `source` over page `target` before this step computes (copy on write inside a page)."""

    source: int
    target: int


class SharedPrefix(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of this step (device rows, at least two) whose first `num_pages` pages are the same pages."""

    rows: tuple[int, ...]
    num_pages: int


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """One step. `rows`, `num_tokens` and `logits` are parallel and in batch order.

    A row computes its tokens [computed, computed + num_tokens), where the worker's row store counts `computed`. Under
    overlap a row may compute a token that the previous step has sampled but the scheduler has not yet seen: the row
    store knows it.
    """

    step: int
    ends: tuple[int, ...] = ()
    starts: tuple[RowStart, ...] = ()
    copies: tuple[PageCopy, ...] = ()
    new_pages: tuple[tuple[int, tuple[int, ...]], ...] = ()
    rows: tuple[int, ...] = ()
    num_tokens: tuple[int, ...] = ()
    logits: tuple[int, ...] = ()
    shared: tuple[SharedPrefix, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether a worker has nothing at all to do for it."""
        return not (self.rows or self.starts or self.ends or self.copies)
