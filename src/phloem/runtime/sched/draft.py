"""A plan while it is being made."""

from __future__ import annotations

from phloem.core.plan import PageCopy, RowStart, SharedPrefix, StepPlan


class Draft:
    """Lists that grow until `freeze`; `budget` is what is left of the step's tokens."""

    __slots__ = ("budget", "copies", "logits", "new_pages", "num_tokens", "rows", "starts")

    def __init__(self, *, budget: int) -> None:
        self.budget = budget
        self.rows: list[int] = []
        self.num_tokens: list[int] = []
        self.logits: list[int] = []
        self.starts: list[RowStart] = []
        self.copies: list[PageCopy] = []
        self.new_pages: list[tuple[int, tuple[int, ...]]] = []

    def compute(self, row: int, num_tokens: int, logits: int) -> None:
        """A row computes tokens in this step."""
        self.rows.append(row)
        self.num_tokens.append(num_tokens)
        self.logits.append(logits)
        self.budget -= num_tokens

    def start(self, start: RowStart, copy: PageCopy | None) -> None:
        """A row starts in this step, perhaps with a page copied."""
        self.starts.append(start)
        if copy is not None:
            self.copies.append(copy)

    def freeze(self, *, step: int, ends: tuple[int, ...], shared: tuple[SharedPrefix, ...]) -> StepPlan:
        """The plan."""
        return StepPlan(
            step=step,
            ends=ends,
            starts=tuple(self.starts),
            copies=tuple(self.copies),
            new_pages=tuple(self.new_pages),
            rows=tuple(self.rows),
            num_tokens=tuple(self.num_tokens),
            logits=tuple(self.logits),
            shared=shared,
        )
