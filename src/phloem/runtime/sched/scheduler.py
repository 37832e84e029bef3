"""The scheduler: a deterministic state machine from commands and results to plans and events.

    admit(command) -> events        a request joins, stops or goes away
    plan()         -> StepPlan      continue what runs, admit what waits, preempt if short
    commit(plan, result) -> events  what a step produced is known

One rule for every token: a sequence has tokens known and tokens computed, and a step hands out its token budget until
they meet. Prefill, its chunks, decode, prefix hits and recompute after a preemption are this one rule.
"""

from __future__ import annotations

from phloem.core.errors import InvalidRequest, Overloaded, RequestAborted, RequestFailed
from phloem.core.plan import StepPlan
from phloem.core.result import StepResult
from phloem.core.wire import (
    Abort,
    Command,
    Event,
    Failed,
    Finished,
    Received,
    Release,
    Reserve,
    Sent,
    Shutdown,
    Stats,
    Stop,
    Submit,
    Tokens,
    WatchCache,
)
from phloem.memory.ledger.keys import encode_tokens
from phloem.memory.ledger.ledger import Ledger
from phloem.runtime.sched.cache_watch import CacheWatch
from phloem.runtime.sched.counters import Counters
from phloem.runtime.sched.draft import Draft
from phloem.runtime.sched.estimate import OutputEstimate
from phloem.runtime.sched.intake import Intake
from phloem.runtime.sched.policy import Policy
from phloem.runtime.sched.residents import Residents
from phloem.runtime.sched.sequence import Phase, Request, Sequence
from phloem.runtime.sched.waiting import WaitingQueue

WAITING, RUNNING, LEAVING, ENDED = Phase


class Scheduler:
    """Owns every request, waiting or running. The ledger is its own, too: nobody else may call it."""

    def __init__(
        self,
        *,
        intake: Intake,
        ledger: Ledger,
        policy: Policy,
        max_rows: int,
        max_step_tokens: int,
        num_micro_batches: int = 1,
    ) -> None:
        self._intake = intake
        self._ledger = ledger
        self._policy = policy
        self._max_step_tokens = max_step_tokens
        self._num_micro_batches = num_micro_batches
        # never more rows than a step has tokens: all that decode advance in every step
        self._residents = Residents(ledger=ledger, max_rows=min(max_rows, max_step_tokens))
        self._cache_watch = CacheWatch(ledger)
        self._waiting = WaitingQueue(policy)
        self._requests: dict[str, Request] = {}
        self._estimate = OutputEstimate()
        self._is_shutting_down = False
        self._is_blocked = False  # the first of the queue found no place, and nothing has changed since
        self._counters = Counters()

    # -- asking

    @property
    def max_prompt_len(self) -> int:
        """Longest prompt in tokens that is not refused."""
        return self._intake.max_prompt_len

    @property
    def has_work(self) -> bool:
        """Whether a plan could have anything in it, now or when plans in flight are committed."""
        can_move = not (self._is_blocked and self._residents.await_transfers)  # until one of these ends
        return (bool(self._requests) and can_move) or self._residents.has_ended_rows or self._residents.are_leaving

    @property
    def is_drained(self) -> bool:
        """Whether shutdown was asked for and nothing is left to do."""
        return self._is_shutting_down and not self._requests and not self.has_work

    def stats(self, now_s: float) -> Stats:
        """Counters since start, gauges of now."""
        return self._counters.stats(
            now_s, pages=self._ledger.stats(), num_running=len(self._residents.running), num_waiting=len(self._waiting)
        )

    def check(self) -> None:
        """AssertionError if the ledger's books do not balance, or pages are leased though nothing is open."""
        self._ledger.check()
        if not self.has_work:
            assert self._ledger.stats().num_leased == len(self._residents.claimed_pages), "idle, but pages are leased"

    # -- admit

    def admit(self, command: Command, now_s: float) -> list[Event]:
        """Take a command in. Events come at once only from refusals, stops and aborts."""
        self._is_blocked = False
        match command:
            case Submit():
                return self._submit(command, now_s)
            case Stop(request_id, choice):
                return self._stop(request_id, choice)
            case Abort(request_id):
                return self._fail(request_id, RequestAborted.code, "aborted by the caller")
            case Release(leases):
                return self._residents.leases.release(leases)
            case WatchCache(on):
                return self._cache_watch.turn(on)
            case Reserve() | Received() | Sent():
                return self._residents.transfers.admit(command, num_spare=self._residents.spare_pages(self._estimate))
            case Shutdown(drain):
                return self._shutdown(drain=drain)

    def _submit(self, submit: Submit, now_s: float) -> list[Event]:
        name = submit.request_id
        if self._is_shutting_down:
            return [Failed(name, Overloaded.code, "the engine is shutting down")]
        if name in self._requests:  # the open one goes on
            return [Failed(name, InvalidRequest.code, "a request with this id is open")]
        if error := self._intake.refusal(submit):
            return [Failed(name, error.code, error.message)]
        request = self._requests[name] = self._intake.accept(submit, now_s)
        for sequence in request.sequences:
            self._waiting.add(sequence)
        self._counters.submitted(len(submit.prompt))
        return []

    def _stop(self, request_id: str, choice: int) -> list[Event]:
        request = self._requests.get(request_id)
        if request is None or not 0 <= choice < len(request.sequences):
            return []
        sequence = request.sequences[choice]
        if sequence.phase == ENDED:
            return []
        return [Tokens(request_id, choice, (), finish="stop"), *self._finish(sequence)]

    def _shutdown(self, *, drain: bool) -> list[Event]:
        self._is_shutting_down = True
        if drain:
            return []
        unstarted = [name for name, each in self._requests.items() if not each.has_started]
        return [event for name in unstarted for event in self._fail(name, RequestAborted.code, "the engine shut down")]

    # -- plan

    def plan(self, now_s: float) -> StepPlan:
        """Decide the next step. An empty plan (`is_empty`) is not to be submitted, nor committed."""
        draft = Draft(budget=self._max_step_tokens)
        short = self._residents.extend_all(draft, standing=self._standing, num_shares=self._num_micro_batches)
        if short is None:
            short = self._admit_waiting(draft)
        if short is not None:
            self._preempt_for(short)
        plan = draft.freeze(
            step=self._counters.num_steps,
            ends=self._residents.take_ended_rows(),
            shared=self._residents.shared_prefixes(draft.rows),
        )
        if not plan.is_empty:
            self._counters.planned()
        return plan

    def _admit_waiting(self, draft: Draft) -> Sequence | None:
        """Start waiting sequences in the policy's order until rows, budget or pages run out. Returns the first that did
        not fit."""
        residents = self._residents
        if not self._waiting or not draft.budget or self._is_blocked:
            return None
        page_size = self._ledger.page_size
        computing = residents.computing_prompts() if self._policy.defers else []
        num_spare = residents.spare_pages(self._estimate)
        for sequence in self._waiting.in_order(self._num_cached):
            if sequence.awaits_leader:
                continue
            match = residents.match(sequence)
            if sequence.shares_more_with(computing, match.num_tokens, page_size):
                continue
            num_wanted = residents.pages_wanted(sequence, match, self._estimate)
            while num_wanted > num_spare and not residents.running and residents.leases.yield_last():
                match, num_spare = residents.match(sequence), residents.spare_pages(self._estimate)
                num_wanted = residents.pages_wanted(sequence, match, self._estimate)
            if num_wanted > num_spare or not residents.has_free_row:
                self._is_blocked = True
                return sequence
            self._waiting.remove(sequence)
            self._counters.started(residents.start(sequence, match, draft))
            num_spare = min(num_spare - num_wanted, self._ledger.num_available)
            if self._policy.defers:
                computing.append(sequence)
            if not draft.budget:
                break
        return None

    def _preempt_for(self, short: Sequence) -> None:
        """Make room by recompute: the sequence of lowest standing goes back to the queue. One at a time: if some are on
        their way out already, their pages will do for now."""
        running = self._residents.running
        if self._residents.are_leaving or not running:
            return
        victim = max(running.values(), key=self._standing)
        if short.phase == WAITING and not self._policy.may_displace(short.candidate, victim.candidate):
            return
        if self._residents.has_free_row and self._residents.leases.yield_last():
            self._is_blocked = False
            return
        self._counters.preempted()
        self._estimate.observe_preemption()
        self._residents.stop_planning(victim)
        victim.leave()
        self._release_if_unleased(victim)

    def _standing(self, sequence: Sequence) -> tuple[float, ...]:
        return self._policy.standing(sequence.candidate)

    def _num_cached(self, sequence: Sequence) -> int:
        return self._residents.match(sequence).num_tokens

    # -- commit

    def commit(self, plan: StepPlan, result: StepResult, now_s: float) -> list[Event]:
        """Take in what a step produced: tokens become known, pages shareable, leases return."""
        assert result.step == plan.step, f"result of step {result.step} for the plan of step {plan.step}"
        residents, events = self._residents, list[Event]()
        residents.settle_copies(plan.copies)
        self._is_blocked &= not plan.copies
        sampled = dict(zip(result.rows, result.tokens, strict=True))
        logprobs = dict(zip(result.rows, result.logprobs))  # empty unless a row asked
        prompt_logprobs, failed = dict(result.prompt_logprobs), dict(result.failed)
        for row, num_tokens in zip(plan.rows, plan.num_tokens, strict=True):
            sequence, num_repeated = residents[row], int(row in result.late)
            samples = sequence.settle(num_tokens, num_repeated=num_repeated)
            if sequence.phase is ENDED:
                self._release_if_unleased(sequence)
                continue
            if row in failed:
                events += self._fail(sequence.request.submit.request_id, RequestFailed.code, failed[row])
                continue
            if sequence.num_computed >= sequence.publish_at:
                events += residents.publish(sequence)
                # those that waited for this prompt need few pages now
                self._is_blocked &= sequence.num_computed != sequence.num_prompt
            new_prompt = (
                sequence.report_prompt(num_tokens - num_repeated, prompt_logprobs[row])
                if row in prompt_logprobs
                else ()
            )
            if samples or new_prompt or sequence.is_complete:
                event = sequence.take(sampled[row] if samples else (), logprobs.get(row, ()), new_prompt)
                events.append(event)
                self._counters.generated(len(event.token_ids))
                if event.finish is not None:
                    events += self._finish(sequence)
            if sequence.phase is LEAVING:
                self._release_if_unleased(sequence)
        if plan.rows:
            self._counters.computed(sum(plan.num_tokens), result.elapsed_s)
        return events + self._cache_watch.changes()

    def fail(self, plan: StepPlan, message: str) -> list[Event]:
        """A submitted plan has no result: every request with a row in it fails, the others go on."""
        events: list[Event] = []
        self._residents.settle_copies(plan.copies)
        for row in plan.rows:
            sequence = self._residents[row]
            sequence.settle(0)
            events += self._fail(sequence.request.submit.request_id, RequestFailed.code, message)
            self._release_if_unleased(sequence)
        return events

    def fail_all(self, code: str, message: str) -> list[Event]:
        """The engine cannot go on: every open request fails."""
        return [event for name in list(self._requests) for event in self._fail(name, code, message)]

    # -- ends

    def _finish(self, sequence: Sequence) -> list[Event]:
        """A choice is complete; so is its request with the last one."""
        request, num_generated = sequence.request, sequence.num_generated
        self._estimate.observe_finish(num_generated=num_generated, max_tokens=sequence.max_tokens)
        self._residents.lease_prefixes(sequence)
        self._end(sequence)
        if not request.finish_choice(num_generated):
            return []
        name = request.submit.request_id
        del self._requests[name]
        num_prompt = len(request.submit.prompt)
        return [Finished(name, num_prompt, request.num_cached_tokens, request.num_generated_tokens)]

    def _fail(self, request_id: str, code: str, message: str) -> list[Event]:
        """End a request that is open; for any other this is a no-op."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return []
        for sequence in request.sequences:
            if sequence.phase is not ENDED:
                self._end(sequence)
        return [Failed(request_id, code, message)]

    def _end(self, sequence: Sequence) -> None:
        if sequence.phase is WAITING:
            self._waiting.remove(sequence)
        elif sequence.phase is RUNNING:
            self._residents.stop_planning(sequence)
        sequence.end()
        self._release_if_unleased(sequence)

    def _release_if_unleased(self, sequence: Sequence) -> None:
        """Give row and pages back if no plan in flight names them; the preempted go back to the queue."""
        if sequence.holding is None or sequence.num_in_flight:
            return
        self._residents.release(sequence)
        self._is_blocked = False
        if sequence.phase is LEAVING:
            sequence.wait(encode_tokens(sequence.tokens))
            self._waiting.add(sequence)
