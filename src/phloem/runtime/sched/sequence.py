"""A request (outside) and its sequences (inside): tokens known, tokens computed, and how far plans have promised."""

from __future__ import annotations

from enum import IntEnum

from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, NO_LOGITS
from phloem.core.request import TokenLogprob
from phloem.core.wire import Submit, Tokens
from phloem.memory.ledger.holding import Holding
from phloem.memory.ledger.keys import BYTES_PER_TOKEN
from phloem.runtime.sched.policy import Candidate

NO_ROW = -1
MIN_SHARED_TOKENS = 8
"""Worth waiting for, where siblings say that they share them: half of what a step costs beside its tokens on a CPU."""


class Phase(IntEnum):
    """WAITING -> RUNNING -> ENDED; preempted: RUNNING -> LEAVING (its plans are in flight) -> WAITING. Any -> ENDED."""

    WAITING = 0
    RUNNING = 1
    LEAVING = 2
    ENDED = 3


class Request:
    """What was submitted, and how many of its choices are open."""

    __slots__ = (
        "arrived_s",
        "has_started",
        "num_cached_tokens",
        "num_generated_tokens",
        "num_open",
        "sequences",
        "submit",
    )

    def __init__(self, submit: Submit, *, arrived_s: float) -> None:
        self.submit = submit
        self.arrived_s = arrived_s
        self.sequences: list[Sequence] = []
        self.num_open = submit.sampling.n
        self.has_started = False
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0

    def start(self, num_cached: int) -> int:
        """A choice got a row. The first tells how much of the prompt was cached; returns what this one adds to it."""
        if self.has_started:
            return 0
        self.has_started = True
        self.num_cached_tokens = num_cached
        return num_cached

    def finish_choice(self, num_generated: int) -> bool:
        """A choice is complete. Returns whether it was the last."""
        self.num_generated_tokens += num_generated
        self.num_open -= 1
        return not self.num_open


class Sequence:
    """One choice. The invariant: num_computed <= num_planned <= num_expected, and len(tokens) <= num_expected, where
    `num_expected` counts the known tokens and those that plans in flight will sample; of a constrained one, the known
    tokens only: one result may bring it several, so nothing of it is planned ahead of a result."""

    __slots__ = (
        "bases", "candidate", "choice", "end_tokens", "holding", "is_constrained", "key", "limit", "max_tokens",
        "min_known", "namespace", "num_computed", "num_expected", "num_in_flight", "num_planned", "num_prompt",
        "num_prompt_logprobs", "num_to_compute", "phase", "publish_at", "reports_prompt", "request", "row", "seed",
        "sequence_id", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        *,
        choice: int,
        sequence_id: int,
        seed: int,
        key: bytes,
        namespace: str,
        max_known: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        submit, sampling = request.submit, request.submit.sampling
        self.request = request
        self.choice = choice
        self.sequence_id = sequence_id
        self.bases = {each.name: each.num_tokens for each in submit.leases if each.num_tokens is not None}
        self.candidate = Candidate(sequence_id, submit.priority, request.arrived_s)
        self.seed = seed
        self.key = key  # of the tokens known when it last joined the queue
        self.namespace = namespace
        self.tokens = list(submit.prompt)
        self.num_prompt = len(self.tokens)
        self.limit = min(self.num_prompt + sampling.max_tokens, max_known)  # tokens known at most
        self.max_tokens = self.limit - self.num_prompt
        self.min_known = self.num_prompt + sampling.min_tokens
        self.num_to_compute = max(self.num_prompt, self.limit - 1)  # the last token is never computed
        own_ends = frozenset(sampling.stop_token_ids)
        self.end_tokens = own_ends if sampling.ignore_eos else own_ends | eos_token_ids
        self.is_constrained = sampling.constraint is not None
        self.reports_prompt = choice == 0 and sampling.prompt_logprobs is not None
        self.num_prompt_logprobs = min(sampling.prompt_logprobs_start, self.num_prompt - 1)  # reported, or not wanted
        self.phase = Phase.WAITING
        self.row = NO_ROW
        self.holding: Holding | None = None
        self.num_expected = self.num_prompt
        self.num_planned = self.num_computed = self.num_in_flight = self.publish_at = 0

    @property
    def num_generated(self) -> int:
        """Tokens this choice has produced."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_to_plan(self) -> int:
        """Tokens known (or about to be) that no plan computes yet."""
        return min(self.num_expected, self.num_to_compute) - self.num_planned

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to compute or to sample."""
        return self.num_computed >= self.num_to_compute and len(self.tokens) >= self.limit

    @property
    def awaits_leader(self) -> bool:
        """Whether the first choice of its request is still to compute the prompt that this one will share."""
        leader = self.request.sequences[0]
        return leader is not self and leader.num_computed < self.num_prompt and leader.phase != Phase.ENDED

    def shares_more_with(self, computing: list[Sequence], num_cached: int, page_size: int) -> bool:
        """Whether one of `computing` is about to compute more of this one's prefix than is cached: a page, or a few
        tokens of what both lease for whom they were forked from."""
        if any(self._num_declared(each) >= num_cached + MIN_SHARED_TOKENS for each in computing):
            return True
        num_wanted = (num_cached // page_size + 1) * page_size
        if not computing or num_wanted > self.max_hit:
            return False
        prefix = self.key[: num_wanted * BYTES_PER_TOKEN]
        return any(each.namespace == self.namespace and each.key.startswith(prefix) for each in computing)

    def _num_declared(self, other: Sequence) -> int:
        """Tokens that this one and another begin with, as far as the leases of their requests tell."""
        if not self.bases or self.namespace != other.namespace:
            return 0
        shared = self.bases.keys() & other.bases.keys()
        return min(self.max_hit, max((self.bases[name] for name in shared), default=0))

    @property
    def max_hit(self) -> int:
        """Tokens that may come from the cache: not the last known one, whose logits are wanted, and none whose prompt
        log-probability is still to be reported."""
        if self.reports_prompt:
            return min(len(self.tokens) - 1, self.num_prompt_logprobs)
        return len(self.tokens) - 1

    def start(self, *, row: int, holding: Holding) -> None:
        """It runs: on a row, with the pages of a cached prefix."""
        self.phase = Phase.RUNNING
        self.row = row
        self.holding = holding
        self.num_planned = self.num_computed = holding.num_hit_tokens
        self.num_expected = len(self.tokens)

    def schedule(self, num_tokens: int) -> int:
        """A plan computes `num_tokens` more, and leases the row. Returns what it wants of their logits."""
        start = self.num_planned
        self.num_planned = end = start + num_tokens
        self.num_in_flight += 1
        samples = end == self.num_expected and end < self.limit
        if samples and not self.is_constrained:
            self.num_expected += 1
        if self.reports_prompt and start < self.num_prompt - 1 and end > self.num_prompt_logprobs:
            return ALL_LOGITS
        return LAST_LOGITS if samples else NO_LOGITS

    def settle(self, num_tokens: int, *, num_repeated: int = 0) -> bool:
        """A plan that computed `num_tokens` of it is over; the last `num_repeated` count as not computed. Returns
        whether what it sampled is the next unknown one."""
        self.num_in_flight -= 1
        if self.phase == Phase.ENDED:
            return False
        self.num_planned -= num_repeated
        self.num_computed += num_tokens - num_repeated
        return self.num_computed == len(self.tokens) < self.limit

    def published(self, *, page_size: int) -> None:
        """What is computed is shared; the next time is at the end of a page, or of the prompt."""
        self.publish_at = (self.num_computed // page_size + 1) * page_size
        if self.num_computed < self.num_prompt < self.publish_at:
            self.publish_at = self.num_prompt

    def report_prompt(self, num_tokens: int, entries: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...]:
        """Prompt log-probabilities of `num_tokens` just settled: those that were not reported before a preemption
        already. The chunk that starts at token i has entries from token i + 1 on."""
        num_before = self.num_computed - num_tokens
        new = entries[self.num_prompt_logprobs - num_before :]
        self.num_prompt_logprobs += len(new)
        return new

    def take(
        self, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], prompt_logprobs: tuple[TokenLogprob, ...]
    ) -> Tokens:
        """The next tokens are known, up to the first that ends it. Returns the event that says so."""
        reason = "length" if self.is_complete else None
        num_taken = 0
        for token in tokens:
            num_taken += 1
            if reason := self._append(token):
                break
        self.num_expected = max(self.num_expected, len(self.tokens))
        if num_taken < len(tokens):
            tokens, logprobs = tokens[:num_taken], logprobs[:num_taken]
        stop_token = tokens[-1] if reason == "stop" else None
        name = self.request.submit.request_id
        return Tokens(name, self.choice, tokens, logprobs, prompt_logprobs, reason, stop_token)

    def _append(self, token: int) -> str | None:
        self.tokens.append(token)
        num_known = len(self.tokens)
        if token in self.end_tokens and num_known > self.min_known:
            return "stop"
        return "length" if num_known >= self.limit else None

    def leave(self) -> None:
        """Preempted: no more plans, but those in flight still count."""
        self.phase = Phase.LEAVING

    def vacate(self) -> None:
        """Row and pages are given back."""
        self.row = NO_ROW
        self.holding = None

    def wait(self, key: bytes) -> None:
        """Back to the queue, everything to be computed again unless it is cached."""
        self.phase = Phase.WAITING
        self.key = key
        self.num_planned = self.num_computed = self.publish_at = 0
        self.num_expected = len(self.tokens)

    def end(self) -> None:
        """Finished, aborted, or failed: tokens still in flight are discarded."""
        self.phase = Phase.ENDED
