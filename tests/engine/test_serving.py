"""Requests go through the whole loop and come out as they should, at both overlap depths."""

from __future__ import annotations

import pytest

from phloem.core.wire import Failed, Finished, Tokens
from phloem.runtime.null import hash_chooser

EOS = 1


def scripted(tokens):
    """A worker's choice that follows a script, then repeats its last token."""
    return lambda row: tokens[min(row.num_generated, len(tokens) - 1)]


def test_tokens_do_not_depend_on_depth_batch_pool_policy_or_chunks(make_engine):
    """Red if a token is computed from a wrong context in any mode: null tokens hash the whole context and the seed."""
    prompts = [[7 + (i * j) % 5 for j in range(3 + 5 * i)] for i in range(9)]

    def answers(**changes):
        engine = make_engine(**changes)
        for index, prompt in enumerate(prompts):
            engine.submit(f"r{index}", prompt, max_tokens=4 + 3 * index)
        engine.run()
        return [engine.tokens(f"r{index}") for index in range(len(prompts))]

    expected = answers()
    for depth in (0, 1):
        for policy in ("fcfs", "lpm", "priority"):
            assert answers(depth=depth, policy=policy) == expected
            assert answers(depth=depth, policy=policy, num_pages=19, max_step_tokens=9) == expected
        assert answers(depth=depth, prefix_cache=False) == expected
        assert answers(depth=depth, max_rows=1) == expected


def test_events_stream_in_order_and_end_once(make_engine, depth):
    """Red if tokens are batched up to the end, or come after the terminal event (asserted in the harness)."""
    engine = make_engine(depth=depth)
    engine.submit("a", [3, 4, 5], max_tokens=5, ignore_eos=True)
    engine.run()
    mine = [event for event in engine.events if isinstance(event, Tokens)]
    assert [len(event.token_ids) for event in mine] == [1, 1, 1, 1, 1]
    assert [event.finish for event in mine] == [None, None, None, None, "length"]
    assert engine.terminal("a") == Finished("a", 3, 0, 5)


def test_end_token_stops_and_is_reported(make_engine, depth):
    """Red if the end token is hidden, or the speculative token after it leaks out under overlap."""
    engine = make_engine(depth=depth, choose=scripted([8, 9, EOS, 10]))
    engine.submit("a", [3, 4], max_tokens=10)
    engine.submit("b", [3, 4, 5], max_tokens=10, ignore_eos=True)
    engine.submit("c", [3, 5], max_tokens=10, stop_token_ids=(9,))
    engine.run()
    assert (engine.tokens("a"), engine.finish("a")) == ([8, 9, EOS], "stop")
    assert engine.seen["a"].stop_token[0] == EOS
    assert engine.tokens("b") == [8, 9, EOS, 10, 10, 10, 10, 10, 10, 10]
    assert (engine.tokens("c"), engine.seen["c"].stop_token[0]) == ([8, 9], 9)


def test_min_tokens_are_generated_first(make_engine, depth):
    """Red if the scheduler finishes at an end token that comes too early."""
    engine = make_engine(depth=depth, choose=scripted([EOS]))
    engine.submit("a", [3, 4], max_tokens=10, min_tokens=3)
    engine.run()
    assert engine.tokens("a") == [EOS] * 4


def test_context_limits_the_answer(make_engine, depth):
    """Red if a sequence outgrows max_model_len."""
    engine = make_engine(depth=depth, max_model_len=12)
    engine.submit("a", [3] * 8, max_tokens=100, ignore_eos=True)
    engine.run()
    assert (len(engine.tokens("a")), engine.finish("a")) == (4, "length")


def test_pool_exhausted_by_one_sequence_alone_ends_it_with_length(make_engine, depth):
    """Red if a sequence that owns every page waits for more for ever."""
    engine = make_engine(depth=depth, num_pages=3)
    engine.submit("a", [3] * 5, max_tokens=100, ignore_eos=True)
    engine.run()
    assert (len(engine.tokens("a")), engine.finish("a")) == (3 * 4 + 1 - 5, "length")


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ([], "invalid_value"),
        ([-1], "invalid_value"),
        ([2**40], "invalid_value"),
        ([3] * 256, "context_length_exceeded"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(make_engine, prompt, code):
    """Red if a bad prompt enters the queue, or kills the engine."""
    engine = make_engine()
    engine.submit("a", prompt)
    engine.submit("b", [3])
    engine.run()
    assert engine.terminal("a").code == code
    assert isinstance(engine.terminal("b"), Finished)


def test_prompt_that_does_not_fit_the_pool_is_refused(make_engine):
    """Red if only the context length is looked at."""
    engine = make_engine(num_pages=2)
    engine.submit("a", [3] * 8)
    engine.submit("b", [3] * 7, max_tokens=1)
    engine.run()
    assert engine.terminal("a").code == "context_length_exceeded"
    assert isinstance(engine.terminal("b"), Finished)


def test_second_request_with_an_open_id_is_refused(make_engine):
    """Red if it silently replaces the first. (The harness sees both under one id, so look at the events.)"""
    engine = make_engine()
    engine.submit("a", [3, 4], max_tokens=3)
    engine.turn()
    scheduler = engine.scheduler
    from phloem.core.request import SamplingParams
    from phloem.core.wire import Submit

    (event,) = scheduler.admit(Submit("a", (5,), SamplingParams()), 0.0)
    assert isinstance(event, Failed)
    assert event.code == "invalid_value"
    engine.run()
    assert isinstance(engine.terminal("a"), Finished)


def test_prompt_logprobs_cover_the_prompt_once(make_engine, depth):
    """Red if chunks overlap or leave gaps, a prefix hit swallows entries, or a preemption repeats them."""
    engine = make_engine(depth=depth, max_step_tokens=8)
    prompt = list(range(10, 40))
    engine.submit("warm", prompt, max_tokens=2)
    engine.run()
    engine.submit("a", prompt, max_tokens=2, prompt_logprobs=0, n=2, logprobs=0)
    engine.run()
    assert engine.seen["a"].prompt_logprobs == prompt[1:]
    assert len(engine.seen["a"].logprobs) == 4
    assert engine.seen["warm"].prompt_logprobs == []
    assert engine.terminal("a").num_cached_tokens == 0


def test_prompt_logprobs_survive_preemption(make_engine, depth):
    """Red if recomputing a preempted prompt reports entries twice or loses some."""
    engine = make_engine(depth=depth, num_pages=14, max_step_tokens=6, policy="priority")
    prompt = list(range(10, 40))
    engine.submit("a", prompt, max_tokens=4, prompt_logprobs=0, ignore_eos=True)
    engine.turn(3)
    for index in range(3):
        engine.submit(f"vip{index}", range(50, 80), max_tokens=8, priority=1, ignore_eos=True, namespace=str(index))
    engine.run()
    assert engine.stats[-1].num_preemptions > 0
    assert engine.seen["a"].prompt_logprobs == prompt[1:]


def test_prompt_can_be_scored_without_generating(make_engine, depth):
    """Red if max_tokens=0 generates a token, or never finishes."""
    engine = make_engine(depth=depth, max_step_tokens=8)
    engine.submit("a", list(range(10, 31)), max_tokens=0, prompt_logprobs=0)
    engine.submit("b", list(range(10, 31)), max_tokens=0)
    engine.run()
    assert engine.seen["a"].prompt_logprobs == list(range(11, 31))
    assert (engine.tokens("a"), engine.finish("a")) == ([], "length")
    assert (engine.tokens("b"), engine.finish("b")) == ([], "length")


def test_same_seed_same_tokens_whatever_the_company(make_engine, depth):
    """Red if a request's seed mixes in its order of arrival, or choices share a stream."""
    alone, crowd = make_engine(depth=depth), make_engine(depth=depth)
    alone.submit("a", [3, 4, 5], seed=42, n=2, max_tokens=8, ignore_eos=True)
    for index in range(5):
        crowd.submit(f"other{index}", [3, 4, 5], max_tokens=8)
    crowd.submit("a", [3, 4, 5], seed=42, n=2, max_tokens=8, ignore_eos=True)
    alone.run()
    crowd.run()
    assert alone.tokens("a", 0) == crowd.tokens("a", 0)
    assert alone.tokens("a", 1) == crowd.tokens("a", 1) != alone.tokens("a", 0)


def test_decode_and_prefill_share_a_step_under_the_budget(make_engine):
    """Red if a long prompt stalls those that decode, or a step exceeds its budget."""
    engine = make_engine(max_step_tokens=16)
    engine.submit("a", [3, 4], max_tokens=30, ignore_eos=True)
    engine.turn(2)
    engine.submit("long", list(range(10, 110)), max_tokens=2)
    engine.run()
    mixed = [plan for plan in engine.worker.plans if len(plan.rows) == 2 and max(plan.num_tokens) > 1]
    assert len(mixed) >= 6
    assert all(plan.num_tokens[0] == 1 for plan in mixed)
    assert max(sum(plan.num_tokens) for plan in engine.worker.plans) == 16


def test_stats_add_up(make_engine, depth):
    """Red if a counter counts something else than it says."""
    engine = make_engine(depth=depth, choose=hash_chooser(vocab_size=50))
    engine.submit("a", list(range(10, 30)), max_tokens=5, ignore_eos=True)
    engine.run()
    engine.submit("b", list(range(10, 30)), max_tokens=5, ignore_eos=True)
    engine.run()
    last = engine.stats[-1]
    assert (last.num_running, last.num_waiting, last.prompt_tokens) == (0, 0, 40)
    assert (last.cached_tokens, last.generated_tokens) == (19, 10)
    assert last.pages_free + last.pages_cached == last.pages_total == 64
    assert last.num_steps == len(engine.worker.plans)
