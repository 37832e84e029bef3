"""The scheduler by case, without a loop: commands in, plans out, results made up by the test."""

from __future__ import annotations

import pytest

from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, NO_LOGITS
from phloem.core.request import SamplingParams
from phloem.core.result import StepResult
from phloem.core.wire import Abort, Finished, Submit, Tokens
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler


def scheduler_with(**changes):
    values = {"num_pages": 64, "page_size": 4, "max_rows": 4, "max_step_tokens": 16, "max_model_len": 128} | changes
    return make_scheduler(SchedulerSettings(**values))


def submit(scheduler, name, prompt, *, priority=0, now_s=0.0, **sampling):
    sampling = {"max_tokens": 8} | sampling
    assert scheduler.admit(Submit(name, tuple(prompt), SamplingParams(**sampling), priority), now_s) == []


def result_of(plan, token=50):
    rows = [row for row, logits in zip(plan.rows, plan.logits) if logits == LAST_LOGITS]
    return StepResult(plan.step, tuple(rows), tuple((token,) for _ in rows))


def step(scheduler, token=50):
    plan = scheduler.plan(0.0)
    return plan, scheduler.commit(plan, result_of(plan, token), 0.0)


def test_first_plan_starts_rows_with_everything_the_worker_needs():
    """Red if a start lacks its tokens, pages, seed or sampling."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 16), seed=5)
    plan = scheduler.plan(0.0)
    (start,) = plan.starts
    assert (start.row, start.token_ids, start.num_prompt_tokens, start.num_computed) == (
        0,
        (10, 11, 12, 13, 14, 15),
        6,
        0,
    )
    assert len(start.pages) == 2
    assert start.sampling.seed == 5
    assert (plan.rows, plan.num_tokens, plan.logits) == ((0,), (6,), (LAST_LOGITS,))


def test_continuing_rows_name_only_new_pages():
    """Red if a plan repeats state the worker has: a page is named when it is new, every fourth token here."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 14), max_tokens=8)
    named = [step(scheduler)[0].new_pages for _ in range(6)]
    assert [len(pages) for pages in named] == [0, 1, 0, 0, 0, 1]


def test_chunks_want_logits_only_at_the_end():
    """Red if a prompt's chunk in the middle computes logits."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 50))
    flags = [step(scheduler)[0] for _ in range(3)]
    assert [plan.num_tokens for plan in flags] == [(16,), (16,), (8,)]
    assert [plan.logits for plan in flags] == [(NO_LOGITS,), (NO_LOGITS,), (LAST_LOGITS,)]


def test_prompt_logprobs_want_all_logits_of_the_prompt_and_no_more():
    """Red if decode steps go on with ALL_LOGITS."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 30), prompt_logprobs=1)
    plans = []
    for _ in range(3):
        plan = scheduler.plan(0.0)
        rows = plan.rows if len(plans) >= 1 else ()
        scheduler.commit(plan, StepResult(plan.step, rows, ((50,),) * len(rows)), 0.0)
        plans.append(plan)
    assert [plan.logits for plan in plans] == [(ALL_LOGITS,), (ALL_LOGITS,), (LAST_LOGITS,)]


def test_scored_prompts_want_no_sampled_token():
    """Red if max_tokens=0 pays for logits, or for a sample nobody takes."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 14), max_tokens=0)
    plan, events = step(scheduler)
    assert plan.logits == (NO_LOGITS,)
    assert events == [Tokens("a", 0, (), finish="length"), Finished("a", 4, 0, 0)]


def test_plan_ahead_computes_a_token_nobody_has_seen_yet():
    """Red if overlap stalls: the second plan is made before the first is committed."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 14))
    first, second = scheduler.plan(0.0), scheduler.plan(0.0)
    assert (second.rows, second.num_tokens, second.logits) == ((0,), (1,), (LAST_LOGITS,))
    assert scheduler.commit(first, result_of(first, 60), 0.0) == [Tokens("a", 0, (60,))]


def test_row_that_ended_is_given_back_when_the_plan_in_flight_is_committed():
    """Red if row or pages are reused while a plan in flight names them, or the extra token gets out."""
    scheduler = scheduler_with(max_rows=1, eos_token_ids=(1,))
    submit(scheduler, "a", range(10, 14))
    submit(scheduler, "b", range(20, 24))
    first, second = scheduler.plan(0.0), scheduler.plan(0.0)
    events = scheduler.commit(first, result_of(first, 1), 0.0)
    assert events == [Tokens("a", 0, (1,), finish="stop", stop_token=1), Finished("a", 4, 0, 1)]
    third = scheduler.plan(0.0)
    assert third.is_empty
    scheduler.check()
    assert scheduler.commit(second, result_of(second, 99), 0.0) == []
    fourth = scheduler.plan(0.0)
    assert fourth.ends == (0,)
    assert [start.row for start in fourth.starts] == [0]


def test_nothing_is_planned_past_the_known_end():
    """Red if overlap computes a token beyond max_tokens: that end, unlike an end token, is known beforehand."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 14), max_tokens=2)
    first, second = scheduler.plan(0.0), scheduler.plan(0.0)
    assert second.rows == (0,)
    assert scheduler.plan(0.0).is_empty
    scheduler.commit(first, result_of(first), 0.0)
    assert isinstance(scheduler.commit(second, result_of(second), 0.0)[-1], Finished)


def test_abort_in_flight_keeps_the_pages_until_the_plan_is_committed():
    """Red if abort frees pages that a step is writing."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 20))
    plan = scheduler.plan(0.0)
    scheduler.admit(Abort("a"), 0.0)
    assert scheduler.stats(0.0).pages_free == 64 - 3
    assert scheduler.commit(plan, result_of(plan), 0.0) == []
    assert scheduler.stats(0.0).pages_free == 64
    assert scheduler.plan(0.0).ends == (0,)
    assert not scheduler.has_work


def test_copy_source_is_leased_until_the_copying_step_is_committed():
    """Red if a cached page can be evicted between the plan that copies it and its commit."""
    scheduler = scheduler_with(num_pages=4)
    submit(scheduler, "a", range(10, 16), max_tokens=1)
    step(scheduler)
    submit(scheduler, "b", range(10, 16), max_tokens=1)
    plan = scheduler.plan(0.0)
    (copy,) = plan.copies
    assert plan.starts[0].num_computed == 5
    assert plan.starts[0].pages[1] == copy.target
    assert scheduler.stats(0.0).pages_cached == 0  # both cached pages are leased
    scheduler.commit(plan, result_of(plan), 0.0)
    assert scheduler.stats(0.0).pages_cached == 2


def test_rows_never_exceed_the_step_budget():
    """Red if more sequences run than a step has tokens: the last ones would starve behind the first."""
    scheduler = scheduler_with(max_rows=8, max_step_tokens=2)
    for name in "abcd":
        submit(scheduler, name, [ord(name)])
    for _ in range(4):
        step(scheduler)
    assert scheduler.stats(0.0).num_running == 2


def test_admission_waits_for_pages_not_for_luck():
    """Red if a prompt starts though the pages it is expected to need are spoken for."""
    scheduler = scheduler_with(num_pages=10, max_step_tokens=64)
    submit(scheduler, "a", range(10, 34), max_tokens=10)
    submit(scheduler, "b", range(40, 60), max_tokens=10)
    plan, _ = step(scheduler)
    assert [start.sequence_id for start in plan.starts] == [0]
    assert scheduler.stats(0.0).num_waiting == 1


def test_one_gives_way_at_a_time():
    """Red if every plan made while a preempted sequence is in flight preempts another: its pages are on their way."""
    scheduler = scheduler_with(num_pages=6, max_step_tokens=64)
    for _ in range(30):
        scheduler._estimate.observe_finish(num_generated=1, max_tokens=100)
    for name in "abc":
        submit(scheduler, name, [ord(name)] * 7, max_tokens=12)
    step(scheduler)
    ahead = [scheduler.plan(0.0) for _ in range(4)]
    assert scheduler.stats(0.0).num_preemptions == 1
    assert scheduler.stats(0.0).num_running == 2
    for plan in ahead:
        if not plan.is_empty:
            scheduler.commit(plan, result_of(plan), 0.0)
    scheduler.check()


def test_sources_of_copies_count_as_taken():
    """Red if admission forgets that a copy leases two pages for the moment: the third would start without any."""
    scheduler = scheduler_with(num_pages=4)
    for name in "abc":
        submit(scheduler, name, [ord(name)] * 3, max_tokens=1)
    step(scheduler)
    assert scheduler.stats(0.0).pages_cached == 3
    for name in "abc":
        submit(scheduler, f"{name}2", [ord(name)] * 3, max_tokens=1)
    plan, _ = step(scheduler)
    assert 0 not in plan.num_tokens
    assert len(plan.copies) == 2
    while scheduler.has_work:
        step(scheduler)


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_blocked_head_is_not_overtaken(policy):
    """Red if small requests slip past a large one for ever."""
    scheduler = scheduler_with(policy=policy, num_pages=10, max_step_tokens=64)
    submit(scheduler, "a", range(10, 34), max_tokens=10)
    submit(scheduler, "large", range(40, 60), max_tokens=10)
    submit(scheduler, "small", [7], max_tokens=1)
    for _ in range(3):
        assert step(scheduler)[0].rows == (0,)


def test_token_of_a_chunk_in_the_middle_is_ignored():
    """Red if a worker that samples after every ALL_LOGITS chunk corrupts the prompt."""
    scheduler = scheduler_with()
    submit(scheduler, "a", range(10, 30), prompt_logprobs=0)
    plan = scheduler.plan(0.0)
    assert scheduler.commit(plan, StepResult(plan.step, (0,), ((99,),)), 0.0) == []
    assert scheduler.plan(0.0).num_tokens == (4,)


def test_several_tokens_a_step_end_at_the_first_end_token():
    """Red if tokens after an end token are given out (a worker may return several once drafts are accepted)."""
    scheduler = scheduler_with(eos_token_ids=(1,))
    submit(scheduler, "a", range(10, 14))
    plan = scheduler.plan(0.0)
    events = scheduler.commit(plan, StepResult(plan.step, (0,), ((60, 1, 61),)), 0.0)
    assert events[0] == Tokens("a", 0, (60, 1), finish="stop", stop_token=1)


def test_result_of_another_step_is_refused():
    """Red if results can be mixed up."""
    scheduler = scheduler_with()
    submit(scheduler, "a", [3])
    plan = scheduler.plan(0.0)
    with pytest.raises(AssertionError, match="step 7"):
        scheduler.commit(plan, StepResult(7), 0.0)
