"""Prompt log-probabilities from a place on: what comes before is taken from the cache, as a selection needs it."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("start", [0, 1, 7, 28, 29, 99])
def test_a_score_reuses_the_cached_prefix(make_engine, depth, start):
    """Red if entries before the start are reported or computed again, or one after it is lost."""
    engine = make_engine(depth=depth, max_step_tokens=8)
    prompt = list(range(10, 40))
    engine.submit("warm", prompt[:-1], max_tokens=1)
    engine.run()
    engine.submit("a", prompt, max_tokens=1, prompt_logprobs=0, prompt_logprobs_start=start)
    engine.run()
    assert engine.seen["a"].prompt_logprobs == prompt[1 + start :]
    assert engine.terminal("a").num_cached_tokens >= min(start, 28) // 4 * 4
    assert engine.terminal("a").num_cached_tokens <= min(start, 29)


def test_a_score_without_a_cached_prefix(make_engine, depth):
    """Red if chunks before the start ask for logits that nobody reads, or shift the entries."""
    engine = make_engine(depth=depth, max_step_tokens=8)
    prompt = list(range(10, 40))
    engine.submit("a", prompt, max_tokens=1, prompt_logprobs=0, prompt_logprobs_start=20)
    engine.run()
    assert engine.seen["a"].prompt_logprobs == prompt[21:]
    assert [flag for plan in engine.worker.plans for flag in plan.logits] == [0, 0, 2, 2]


def test_a_score_survives_preemption(make_engine, depth):
    """Red if a preempted score reports entries twice, or those before its start."""
    engine = make_engine(depth=depth, num_pages=14, max_step_tokens=6, policy="priority")
    prompt = list(range(10, 40))
    engine.submit("a", prompt, max_tokens=4, prompt_logprobs=0, prompt_logprobs_start=9, ignore_eos=True)
    engine.turn(3)
    for index in range(3):
        engine.submit(f"vip{index}", range(50, 80), max_tokens=8, priority=1, ignore_eos=True, namespace=str(index))
    engine.run()
    assert engine.stats[-1].num_preemptions > 0
    assert engine.seen["a"].prompt_logprobs == prompt[10:]
