"""The sequences that hold a device row and pages, and everything that happens to those rows and pages."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from phloem.core.plan import PageCopy, RowStart, SharedPrefix
from phloem.core.wire import Event
from phloem.memory.ledger.ledger import NO_MATCH, Ledger, Match
from phloem.runtime.sched.draft import Draft
from phloem.runtime.sched.estimate import OutputEstimate
from phloem.runtime.sched.groups import MIN_SHARED_PAGES, SharedPrefixes
from phloem.runtime.sched.leases import PrefixLeases
from phloem.runtime.sched.sequence import Sequence
from phloem.runtime.sched.transfers import PageTransfers


class Residents:
    """Rows, by number, and the ledger's only caller. A row is leased by every plan in flight that names it
    (`Sequence.num_in_flight`); row and pages are given back when the last of those plans is committed."""

    def __init__(self, *, ledger: Ledger, max_rows: int) -> None:
        self._ledger = ledger
        self._rows: list[Sequence | None] = [None] * max_rows
        self._free_rows = list(range(max_rows))  # a heap
        self._ended_rows: list[int] = []
        self._shared = SharedPrefixes()
        self.leases = PrefixLeases(ledger)
        self.transfers = PageTransfers(ledger, leases=self.leases)
        self.running: dict[int, Sequence] = {}  # by sequence id, in the order they started

    # -- asking

    def __getitem__(self, row: int) -> Sequence:
        sequence = self._rows[row]
        assert sequence is not None, f"row {row} is free"
        return sequence

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for sequence in self._rows if sequence is not None)

    @property
    def has_free_row(self) -> bool:
        """Whether another sequence can start."""
        return bool(self._free_rows)

    @property
    def has_ended_rows(self) -> bool:
        """Whether the worker must still be told of rows that ended."""
        return bool(self._ended_rows)

    @property
    def are_leaving(self) -> bool:
        """Whether rows and pages are about to be given back, when the plans in flight are committed."""
        return len(self._rows) - len(self._free_rows) > len(self.running)

    @property
    def await_transfers(self) -> bool:
        """Whether nothing runs, and pages that others wait for are in transfer."""
        return not self.running and self.transfers.are_open

    @property
    def claimed_pages(self) -> set[int]:
        """Pages that are leased though no sequence holds them."""
        return self.leases.pages | self.transfers.pages

    def computing_prompts(self) -> list[Sequence]:
        """Running sequences whose prompts are not yet computed to the end."""
        return [each for each in self.running.values() if each.num_computed < each.num_prompt]

    def match(self, sequence: Sequence) -> Match:
        """The cached prefix a waiting sequence may use."""
        max_hit = sequence.max_hit
        if max_hit <= 0:
            return NO_MATCH
        return self._ledger.match(sequence.key, namespace=sequence.namespace, max_tokens=max_hit)

    def spare_pages(self, estimate: OutputEstimate) -> int:
        """Pages left once everyone running has generated what is expected of it; negative when over-committed."""
        reserved = 0
        for sequence in self.running.values():
            assert sequence.holding is not None
            reserved += max(0, self._pages_expected(sequence, estimate) - len(sequence.holding.pages))
        return self._ledger.num_available - reserved

    def pages_wanted(self, sequence: Sequence, match: Match, estimate: OutputEstimate) -> int:
        """Pages a waiting sequence would take in the end, beyond those others lease anyway. Never more than the pool
        has: its limit was cut to that (`Intake`)."""
        return self._pages_expected(sequence, estimate) - match.num_leased_pages

    # -- doing

    def start(self, sequence: Sequence, match: Match, draft: Draft) -> int:
        """Give a waiting sequence a row and its first chunk. Returns how many prompt tokens this spares its request."""
        row = heapq.heappop(self._free_rows)
        holding, copy = self._ledger.open(match, namespace=sequence.namespace)
        sequence.start(row=row, holding=holding)
        self._rows[row] = sequence
        self.running[sequence.sequence_id] = sequence
        num_tokens = min(draft.budget, sequence.num_to_plan)
        self._grow(sequence, num_tokens)
        if len(holding.pages) >= MIN_SHARED_PAGES:
            self._shared.join(row, holding.pages)
        start = RowStart(
            row=row,
            sequence_id=sequence.sequence_id,
            token_ids=tuple(sequence.tokens),
            num_prompt_tokens=sequence.num_prompt,
            num_computed=holding.num_hit_tokens,
            pages=tuple(holding.pages),
            sampling=sequence.request.submit.sampling,
            seed=sequence.seed,
        )
        draft.start(start, copy)
        num_tokens = min(num_tokens, holding.capacity - sequence.num_planned)
        draft.compute(row, num_tokens, sequence.schedule(num_tokens))
        return sequence.request.start(holding.num_hit_tokens)

    def extend_all(
        self, draft: Draft, *, standing: Callable[[Sequence], tuple[float, ...]], num_shares: int
    ) -> Sequence | None:
        """One token for each that decodes, in a pipeline for one of `num_shares` parts of them, then chunks by
        `standing` for those that have more to compute. Returns the first that found no page."""
        short: Sequence | None = None
        behind = []
        extend = self.extend
        share = -(-len(self.running) // num_shares)
        for sequence in self.running.values():
            num_tokens = sequence.num_to_plan
            if num_tokens > 1:
                behind.append(sequence)
            elif num_tokens == 1 and len(draft.rows) < share and not extend(sequence, 1, draft):
                short = short or sequence
        for sequence in sorted(behind, key=standing):
            num_tokens = min(sequence.num_to_plan, draft.budget)
            if num_tokens and not extend(sequence, num_tokens, draft):
                short = short or sequence
        return short

    def extend(self, sequence: Sequence, num_tokens: int, draft: Draft) -> bool:
        """Compute up to `num_tokens` more of its known tokens, as far as pages go; False if no page is left for any."""
        holding = sequence.holding
        assert holding is not None
        if holding.capacity < sequence.num_planned + num_tokens:
            num_before = len(holding.pages)
            if pages := self._grow(sequence, num_tokens):
                draft.new_pages.append((sequence.row, pages))
            if num_before < MIN_SHARED_PAGES <= len(holding.pages):
                self._shared.join(sequence.row, holding.pages)
            num_tokens = min(num_tokens, holding.capacity - sequence.num_planned)
        if num_tokens:
            draft.compute(sequence.row, num_tokens, sequence.schedule(num_tokens))
        return num_tokens > 0

    def publish(self, sequence: Sequence) -> list[Event]:
        """Share what it has computed: whole pages, and the end of its prompt for those that go on from there. Events
        tell who sends its pages elsewhere."""
        assert sequence.holding is not None
        num_computed = sequence.num_computed
        self._ledger.publish(
            sequence.holding, sequence.tokens, num_computed, partial=num_computed == sequence.num_prompt
        )
        sequence.published(page_size=self._ledger.page_size)
        return self.transfers.report(sequence) if sequence.request.submit.sends_pages else []

    def lease_prefixes(self, sequence: Sequence) -> None:
        """Its request is complete: what it is to leave leased is claimed before its own pages go."""
        submit = sequence.request.submit
        if not submit.leases or sequence.choice:
            return
        if sequence.holding is not None:
            self._ledger.publish(sequence.holding, sequence.tokens, sequence.num_computed, partial=True)
        for lease in submit.leases:
            tokens = sequence.tokens[: lease.num_tokens]
            self.leases.take(lease.name, tokens, namespace=sequence.namespace, priority=submit.priority)

    def stop_planning(self, sequence: Sequence) -> None:
        """It ended or was preempted: no more plans."""
        del self.running[sequence.sequence_id]

    def release(self, sequence: Sequence) -> None:
        """Its last lease is back: free the row, and the pages but for what the cache keeps."""
        assert sequence.holding is not None
        assert not sequence.num_in_flight, f"row {sequence.row} is still leased"
        self._ledger.publish(sequence.holding, sequence.tokens, sequence.num_computed, partial=True)
        self._ledger.close(sequence.holding)
        self._shared.leave(sequence.row)
        self._rows[sequence.row] = None
        self._ended_rows.append(sequence.row)
        heapq.heappush(self._free_rows, sequence.row)
        sequence.vacate()

    def settle_copies(self, copies: Iterable[PageCopy]) -> None:
        """The plan that made these copies is committed: their sources may go."""
        self._ledger.settle(copies)

    def take_ended_rows(self) -> tuple[int, ...]:
        """Rows that ended since the last plan."""
        ended = tuple(self._ended_rows)
        self._ended_rows.clear()
        return ended

    def shared_prefixes(self, rows: list[int]) -> tuple[SharedPrefix, ...]:
        """The groups of rows in a step that share their first pages."""
        return self._shared.groups(rows)

    def _grow(self, sequence: Sequence, num_tokens: int) -> tuple[int, ...]:
        holding = sequence.holding
        assert holding is not None
        num_missing = self._ledger.pages_for(sequence.num_planned + num_tokens) - len(holding.pages)
        while num_missing > self._ledger.num_available and self.leases.yield_last():
            pass
        return self._ledger.grow(holding, max(0, min(num_missing, self._ledger.num_available)))

    def _pages_expected(self, sequence: Sequence, estimate: OutputEstimate) -> int:
        remaining = estimate.remaining(num_generated=sequence.num_generated, max_tokens=sequence.max_tokens)
        return self._ledger.pages_for(min(len(sequence.tokens) + remaining, sequence.num_to_compute))
