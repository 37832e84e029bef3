"""Too little of everything: rows, pages, budget. Nothing starves, nothing is computed twice in vain, nobody hangs."""

from __future__ import annotations

import pytest

from phloem.core.wire import Finished
from phloem.memory.ledger.keys import encode_tokens
from phloem.runtime.null import hash_chooser
from phloem.runtime.sched.groups import MIN_SHARED_PAGES

EOS, SHORT = 1, 99


def optimist(make_engine, **changes):
    """An engine that has only ever seen short answers, and so over-commits its memory."""
    usual = hash_chooser(vocab_size=97, avoid=(EOS,))
    engine = make_engine(choose=lambda row: EOS if row.tokens[0] == SHORT else usual(row), **changes)
    for index in range(30):
        engine.submit(f"short{index}", [SHORT], max_tokens=20)
    return engine.run()


@pytest.mark.parametrize("num_pages", [7, 9, 12, 20])
@pytest.mark.parametrize("policy", ["fcfs", "lpm", "priority"])
def test_preemption_storm(make_engine, depth, policy, num_pages):
    """Red if a pool far too small for its load is a dead end, or a preempted sequence loses or repeats tokens."""
    engine = optimist(make_engine, depth=depth, num_pages=num_pages, policy=policy, max_step_tokens=16)
    roomy = make_engine(num_pages=512)
    for index in range(10):
        for each in (engine, roomy):
            each.submit(f"r{index}", [index, 5, 6], max_tokens=22, ignore_eos=True, priority=index % 3, seed=index)
    engine.run()
    roomy.run()
    assert engine.stats[-1].num_preemptions > 0
    for index in range(10):
        assert engine.tokens(f"r{index}") == roomy.tokens(f"r{index}")


def test_recompute_after_a_preemption_is_mostly_a_prefix_hit(make_engine, depth):
    """Red if preemption throws away what was computed although nobody needed all of those pages."""
    engine = optimist(make_engine, depth=depth, num_pages=16, max_rows=2)
    num_before = engine.null.num_computed_tokens
    engine.submit("a", list(range(10, 30)), max_tokens=24, ignore_eos=True)
    engine.submit("b", list(range(40, 60)), max_tokens=24, ignore_eos=True)
    engine.run()
    assert engine.stats[-1].num_preemptions >= 1
    needed = 2 * (20 + 24 - 1)
    assert engine.null.num_computed_tokens - num_before <= needed + 24 + 2 * depth


def test_over_commit_shrinks_after_preemptions(make_engine):
    """Red if the estimate does not learn: the second wave, of the same kind, must preempt less than the first."""
    engine = make_engine(num_pages=24, max_rows=8)

    def wave(serial):
        before = engine.scheduler.stats(0.0).num_preemptions
        for index in range(24):
            engine.submit(
                f"{serial}-{index}", [serial, index, 7], max_tokens=40, ignore_eos=True, namespace=str(serial)
            )
        engine.run()
        return engine.scheduler.stats(0.0).num_preemptions - before

    first, second = wave(0), wave(1)
    assert first > 0
    assert second < first


def test_short_answers_let_more_run_at_once(make_engine):
    """Red if admission reserves max_tokens for everybody though answers are short."""
    engine = make_engine(num_pages=40, choose=lambda row: 1 if row.num_generated >= 3 else 5)
    most = 0
    for index in range(40):
        engine.submit(f"r{index}", [index, 3, 4], max_tokens=100)
    while engine.turn():
        most = max(most, len(engine.scheduler._residents.running))
    assert most == 8
    assert engine.scheduler.stats(0.0).num_preemptions == 0


@pytest.mark.parametrize("policy", ["lpm", "priority"])
def test_prefix_shared_by_requests_that_arrive_together_is_computed_once(make_engine, depth, policy):
    """Red if requests start on a prefix that another is just computing."""
    engine = make_engine(depth=depth, policy=policy, num_pages=256, max_rows=32, max_step_tokens=64)
    prefix = [5 + index % 40 for index in range(128)]
    for index in range(32):
        engine.submit(f"r{index}", [*prefix, index, index], max_tokens=4, ignore_eos=True)
    engine.run()
    slack = 32 * (2 + 4 - 1)  # each question, and what is generated
    assert engine.null.num_computed_tokens <= 128 + slack + 32 * depth
    assert engine.stats[-1].cached_tokens == 31 * 128


def test_answers_are_shareable_while_they_are_generated(make_engine, depth):
    """Red if generated tokens can be found only when their request ends."""
    engine = make_engine(depth=depth)
    engine.submit("a", [3, 4, 5, 6], max_tokens=40, ignore_eos=True)
    engine.turn(20)
    assert engine.terminal("a") is None
    engine.submit("b", [3, 4, 5, 6, *engine.tokens("a")[:13]], max_tokens=1)
    engine.run()
    assert engine.terminal("b").num_cached_tokens == 16


def test_chunks_are_shareable_as_they_are_computed(make_engine):
    """Red if a prompt can be found only once it is computed to its end."""
    engine = make_engine(max_step_tokens=8)
    prompt = list(range(10, 74))
    engine.submit("a", prompt, max_tokens=1)
    found = []
    for _ in range(4):
        engine.turn()
        match = engine.scheduler._ledger.match(encode_tokens(prompt), namespace="cache:", max_tokens=64)
        found.append(match.num_tokens)
    assert found == [8, 16, 24, 32]


def test_choices_share_the_prompt_to_the_last_token(make_engine, depth):
    """Red if siblings compute the prompt again, or more than its last token."""
    engine = make_engine(depth=depth)
    engine.submit("a", list(range(10, 37)), max_tokens=5, n=4, ignore_eos=True)
    engine.run()
    assert engine.null.num_computed_tokens <= 27 + 3 + 4 * 4 + 4 * depth
    copies = [copy for plan in engine.worker.plans for copy in plan.copies]
    assert len(copies) == 3
    assert len({tuple(engine.tokens("a", choice)) for choice in range(4)}) == 4


def test_choices_share_without_the_prefix_cache_and_leave_nothing(make_engine, depth):
    """Red if prefix_cache=False recomputes the prompt for each choice, or keeps pages afterwards."""
    engine = make_engine(depth=depth, prefix_cache=False)
    for name in "ab":
        engine.submit(name, list(range(10, 37)), max_tokens=5, n=3, ignore_eos=True)
    engine.run()
    assert engine.null.num_computed_tokens <= 2 * (27 + 2 + 3 * 4 + 3 * depth)
    assert engine.stats[-1].pages_free == engine.stats[-1].pages_total
    assert engine.stats[-1].cached_tokens == 0


def test_choices_beyond_the_rows_wait_their_turn(make_engine, depth):
    """Red if n larger than max_rows hangs."""
    engine = make_engine(depth=depth, max_rows=2, num_pages=12)
    engine.submit("a", [3, 4, 5], max_tokens=6, n=9, ignore_eos=True)
    engine.run()
    assert [len(engine.tokens("a", choice)) for choice in range(9)] == [6] * 9
    assert engine.terminal("a") == Finished("a", 3, 0, 54)


def test_urgent_request_displaces_a_lesser_one(make_engine, depth):
    """Red if priority only orders the queue."""
    engine = make_engine(depth=depth, policy="priority", max_rows=2)
    for name in "ab":
        engine.submit(name, [3, ord(name)], max_tokens=60, ignore_eos=True)
    engine.turn(5)
    engine.submit("urgent", [9], max_tokens=5, priority=1, ignore_eos=True)
    engine.turn(9 + 2 * depth)
    assert isinstance(engine.terminal("urgent"), Finished)
    assert engine.terminal("a") is None
    engine.run()
    assert len(engine.tokens("a")) == len(engine.tokens("b")) == 60


def test_equals_do_not_displace_each_other(make_engine):
    """Red if two of one priority take turns throwing each other out."""
    engine = make_engine(policy="priority", max_rows=1)
    engine.submit("a", [3], max_tokens=20, ignore_eos=True)
    engine.turn(2)
    engine.submit("b", [4], max_tokens=20, ignore_eos=True)
    engine.run()
    assert engine.stats[-1].num_preemptions == 0


def test_lpm_prefers_what_is_cached(make_engine):
    """Red if lpm is fcfs."""
    engine = make_engine(policy="lpm", max_rows=1)
    engine.submit("warm", list(range(10, 40)), max_tokens=1)
    engine.run()
    engine.submit("cold", list(range(50, 80)), max_tokens=1)
    engine.submit("hot", list(range(10, 40)), max_tokens=1)
    engine.run()
    order = [event.request_id for event in engine.events if isinstance(event, Finished)]
    assert order == ["warm", "hot", "cold"]


def test_lpm_starves_nobody(make_engine):
    """Red without ageing: a stream of cached requests would overtake the cold one for ever. Thirty cached tokens are
    worth 30 ms of waiting, three turns of this clock."""
    engine = make_engine(policy="lpm", max_rows=1)
    hot = list(range(10, 41))
    engine.submit("warm", hot, max_tokens=1)
    engine.run()
    engine.submit("cold", list(range(50, 80)), max_tokens=1)
    for index in range(30):
        engine.submit(f"hot{index}", hot, max_tokens=1)
        engine.turn()
    assert isinstance(engine.terminal("cold"), Finished)
    engine.run()


def test_many_more_requests_than_rows(make_engine, depth):
    """Red if anything is lost in a long queue."""
    engine = make_engine(depth=depth, max_rows=3)
    for index in range(60):
        engine.submit(f"r{index}", [index, index + 1], max_tokens=1 + index % 7)
    engine.run()
    assert all(isinstance(engine.terminal(f"r{index}"), Finished) for index in range(60))


def test_rows_that_share_pages_are_grouped(make_engine, depth):
    """Red if the plan does not tell attention what may be read once. (The worker checks that groups are true.)"""
    engine = make_engine(depth=depth, policy="lpm", num_pages=256, max_step_tokens=64)
    prefix = list(range(5, 5 + 4 * (MIN_SHARED_PAGES + 2)))
    for index in range(6):
        engine.submit(f"r{index}", [*prefix, index], max_tokens=6, ignore_eos=True)
    engine.submit("other", list(range(100, 150)), max_tokens=6, ignore_eos=True)
    engine.run()
    widest = max(
        (plan.shared for plan in engine.worker.plans), key=lambda shared: sum(len(group.rows) for group in shared)
    )
    assert [(len(group.rows), group.num_pages) for group in widest] == [(6, MIN_SHARED_PAGES + 2)]


def test_namespaces_do_not_share_prefixes(make_engine):
    """Red if the salt of a request is ignored."""
    engine = make_engine()
    for salt in ("x", "y", "x"):
        engine.submit(f"{salt}{len(engine.events)}", list(range(10, 30)), max_tokens=1, namespace=salt)
        engine.run()
    assert [event.num_cached_tokens for event in engine.events if isinstance(event, Finished)] == [0, 0, 19]
