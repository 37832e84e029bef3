"""A worker without a model: it applies plans to rows and pages of plain integers, checks as strictly as it can that
they are sound, and answers with tokens that depend on everything a model's would depend on.

A page slot remembers which token at which position was written to it. Before a row answers, its whole context is read
back through its block table and must be exactly the row's tokens: a page freed too early, shared wrongly, not copied or
written by two rows shows up as a wrong context. `verify=False` leaves the reading out, for measurements.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, RowStart, StepPlan
from phloem.core.request import Constraint, TokenLogprob
from phloem.core.result import StepResult
from phloem.runtime.grammar.matcher import Matcher
from phloem.runtime.handover.pages import PageBytes
from phloem.runtime.sched.seeds import mix

EMPTY = -1
NULL_VOCAB_SIZE = 512

Choose = Callable[["NullRow"], int]
"""The next token of a row whose known tokens are all computed."""


class Grammars(Protocol):
    """Where rows with a constraint get their matchers."""

    def matcher(self, constraint: Constraint, generated: Sequence[int] = ()) -> Matcher:
        """One that has seen `generated`."""


class NullRow:
    """One row of the worker's row store."""

    __slots__ = ("capacity", "matcher", "num_computed", "num_prompt", "pages", "start", "tokens")

    def __init__(self, start: RowStart, *, matcher: Matcher | None = None) -> None:
        self.start = start
        self.matcher = matcher
        self.tokens = list(start.token_ids)
        self.num_prompt = start.num_prompt_tokens
        self.num_computed = start.num_computed
        self.pages = list(start.pages)

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.num_prompt


class NullHandle:
    """A step that is done already, and says so after `step_s`."""

    def __init__(self, result: StepResult, *, ready_s: float) -> None:
        self._result = result
        self._ready_s = ready_s

    def wait(self) -> StepResult:
        """The result."""
        if (left_s := self._ready_s - time.monotonic()) > 0:
            time.sleep(left_s)
        return self._result


def hash_chooser(*, vocab_size: int, avoid: Collection[int] = ()) -> Choose:
    """Tokens from a hash of the sequence's seed and its whole context. Those in `avoid` (end tokens), and the request's
    stop tokens, are not chosen before `min_tokens`."""

    def choose(row: NullRow) -> int:
        sampling = row.start.sampling
        state = mix(row.start.seed, zlib.crc32(np.asarray(row.tokens, np.int64).tobytes()))
        token = state % vocab_size
        if row.num_generated < sampling.min_tokens:
            while token in avoid or token in sampling.stop_token_ids:
                state = mix(state)
                token = state % vocab_size
        return token

    return choose


class NullWorker:
    """A `Worker` of integers. `num_computed_tokens` counts the tokens it computed. `is_late` says of a constrained row
    that wants a token whether its mask is not ready yet."""

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        max_rows: int,
        choose: Choose,
        step_s: float = 0.0,
        verify: bool = True,
        grammars: Grammars | None = None,
        is_late: Callable[[NullRow], bool] = lambda _: False,
    ) -> None:
        self._page_size = page_size
        self._num_pages = num_pages
        self._max_rows = max_rows
        self._choose = choose
        self._step_s = step_s
        self._verify = verify
        self._grammars = grammars
        self._is_late = is_late
        self._rows: dict[int, NullRow] = {}
        self._slot_tokens = np.full((num_pages, page_size), EMPTY, np.int64)
        self._slot_positions = np.full((num_pages, page_size), EMPTY, np.int64)
        self._next_step = 0
        self.num_computed_tokens = 0

    @property
    def is_warm(self) -> bool:
        """There is nothing to warm up."""
        return True

    def prepare(self) -> bool:
        """There is nothing to prepare."""
        return False

    @property
    def page_bytes(self) -> PageBytes:
        """What its pages remember, as two layers."""
        layers = [slots.view(np.uint8) for slots in (self._slot_tokens, self._slot_positions)]
        return PageBytes(layers, page_size=self._page_size, fingerprint=f"null {self._page_size}")

    def submit(self, plan: StepPlan) -> NullHandle:
        """Apply a plan. AssertionError naming the row or page if it is not sound."""
        assert plan.step == self._next_step, f"step {plan.step} came after step {self._next_step - 1}"
        self._next_step += 1
        self._apply(plan)
        result = self._compute(plan)
        return NullHandle(result, ready_s=time.monotonic() + self._step_s)

    def close(self) -> None:
        """Nothing to give back."""

    # -- the plan's fields, in order

    def _apply(self, plan: StepPlan) -> None:
        for row in plan.ends:
            assert row in self._rows, f"row {row} ends, but never started"
            del self._rows[row]
        for start in plan.starts:
            self._start(start)
        targets = [copy.target for copy in plan.copies]
        assert len(set(targets)) == len(targets), "a page is copied to twice in one step"
        for copy in plan.copies:
            self._slot_tokens[copy.target] = self._slot_tokens[copy.source]
            self._slot_positions[copy.target] = self._slot_positions[copy.source]
        for row, pages in plan.new_pages:
            self._rows[row].pages.extend(self._valid(pages))

    def _start(self, start: RowStart) -> None:
        assert start.row not in self._rows, f"row {start.row} starts, but has not ended"
        assert 0 <= start.row < self._max_rows, f"row {start.row} does not exist"
        assert 0 <= start.num_computed < len(start.token_ids), f"row {start.row} starts with nothing to compute"
        self._valid(start.pages)
        matcher = None
        if (constraint := start.sampling.constraint) is not None:
            assert self._grammars is not None, "a constraint, but no grammars"
            matcher = self._grammars.matcher(constraint, start.token_ids[start.num_prompt_tokens :])
        self._rows[start.row] = NullRow(start, matcher=matcher)

    def _valid(self, pages: tuple[int, ...]) -> tuple[int, ...]:
        assert all(0 <= page < self._num_pages for page in pages), f"no such page in {pages}"
        return pages

    # -- the step

    def _compute(self, plan: StepPlan) -> StepResult:
        assert len(set(plan.rows)) == len(plan.rows), "a row is in the batch twice"
        if self._verify:
            self._write(plan)
            self._check_groups(plan)
        rows, tokens, logprobs, prompt_logprobs, late = [], [], [], [], []
        failed: list[tuple[int, str]] = []
        for row_id, num_tokens, logits in zip(plan.rows, plan.num_tokens, plan.logits, strict=True):
            row = self._rows[row_id]
            first, row.num_computed = row.num_computed, row.num_computed + num_tokens
            self.num_computed_tokens += num_tokens
            assert num_tokens > 0, f"row {row_id} computes nothing"
            assert row.num_computed <= len(row.tokens), f"row {row_id} computes unknown tokens"
            assert row.num_computed <= len(row.pages) * self._page_size, f"row {row_id} has no page for its tokens"
            if self._verify:
                self._read_back(row_id, row)
            if logits == ALL_LOGITS:
                prompt_logprobs.append((row_id, self._prompt_logprobs(row, first)))
            samples = logits >= LAST_LOGITS and row.num_computed == len(row.tokens)
            if samples and row.matcher is not None and self._is_late(row):
                row.num_computed -= 1
                late.append(row_id)
            elif samples:
                sampled = self._sample(row)
                if not sampled:
                    failed.append((row_id, f"the constraint cannot be followed any further: {_fault(row)}"))
                    continue
                token = sampled[0]
                row.tokens += sampled
                rows.append(row_id)
                tokens.append(tuple(sampled))
                logprobs.append(() if row.start.sampling.logprobs is None else (_logprob(token),))
        return StepResult(
            step=plan.step,
            rows=tuple(rows),
            tokens=tuple(tokens),
            logprobs=tuple(logprobs) if any(logprobs) else (),
            prompt_logprobs=tuple(prompt_logprobs),
            failed=tuple(failed),
            elapsed_s=self._step_s,
            late=tuple(late),
        )

    def _sample(self, row: NullRow) -> list[int]:
        """The next token, and those that a constraint forces after it. What a constraint allows is chosen from by the
        token that would have been chosen without it; none when nothing is allowed."""
        token, matcher, sampling = self._choose(row), row.matcher, row.start.sampling
        if matcher is None:
            return [token]
        allowed = np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little"))
        if not allowed.size:
            return []
        token = int(allowed[token % allowed.size])
        matcher.accept(token)
        may_force = 0 if sampling.logprobs is not None else sampling.max_tokens - row.num_generated - 1
        return [token, *matcher.force(may_force)]

    def _write(self, plan: StepPlan) -> None:
        """Write every row's new tokens, then see that no page was written by two rows."""
        writer: dict[int, int] = {}
        for row_id, num_tokens in zip(plan.rows, plan.num_tokens, strict=True):
            row = self._rows[row_id]
            positions = np.arange(row.num_computed, row.num_computed + num_tokens)
            pages = np.asarray(row.pages, np.int64)[positions // self._page_size]
            self._slot_tokens[pages, positions % self._page_size] = row.tokens[row.num_computed : positions[-1] + 1]
            self._slot_positions[pages, positions % self._page_size] = positions
            for page in dict.fromkeys(pages.tolist()):
                other = writer.setdefault(page, row_id)
                assert other == row_id, f"page {page} is written by rows {other} and {row_id}"

    def _read_back(self, row_id: int, row: NullRow) -> None:
        positions = np.arange(row.num_computed)
        pages = np.asarray(row.pages, np.int64)[positions // self._page_size]
        slots = positions % self._page_size
        is_right = (self._slot_tokens[pages, slots] == np.asarray(row.tokens[: row.num_computed])) & (
            self._slot_positions[pages, slots] == positions
        )
        if not is_right.all():
            place = int(np.argmin(is_right))
            raise AssertionError(f"row {row_id} reads a wrong token at position {place}, page {pages[place]}")

    def _check_groups(self, plan: StepPlan) -> None:
        grouped = [row for group in plan.shared for row in group.rows]
        assert len(set(grouped)) == len(grouped), "a row is in two groups"
        for group in plan.shared:
            first = self._rows[group.rows[0]].pages[: group.num_pages]
            assert len(group.rows) > 1, f"a group of one: {group}"
            assert len(first) == group.num_pages > 0, f"a group that shares nothing: {group}"
            for row_id in group.rows:
                row = self._rows[row_id]
                assert row_id in plan.rows, f"row {row_id} is in a group, but not in the step"
                assert row.pages[: group.num_pages] == first, f"row {row_id} does not share {group.num_pages} pages"
                assert row.num_computed >= group.num_pages * self._page_size, f"row {row_id} computes a shared page"

    def _prompt_logprobs(self, row: NullRow, first: int) -> tuple[TokenLogprob, ...]:
        last = min(row.num_computed, row.num_prompt - 1)
        return tuple(_logprob(token) for token in row.tokens[first + 1 : last + 1])


def _fault(row: NullRow) -> str | None:
    return None if row.matcher is None else row.matcher.fault


def _logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token, -1.0 - token / 1024, 1)
