"""Whatever happens, in whatever order: every request gets exactly one terminal event, every page comes back, and what
was answered is what the same request would have been answered alone."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from phloem.core.wire import Finished

ENGINES = st.fixed_dictionaries(
    {
        "depth": st.integers(0, 2),
        "policy": st.sampled_from(["fcfs", "lpm", "priority"]),
        "num_pages": st.integers(6, 24),
        "page_size": st.sampled_from([1, 3, 4]),
        "max_rows": st.integers(1, 6),
        "max_step_tokens": st.integers(1, 20),
        "prefix_cache": st.booleans(),
    }
)
PROMPTS = st.lists(st.integers(2, 3), min_size=1, max_size=24)
SUBMITS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "max_tokens": st.integers(0, 14),
        "n": st.integers(1, 3),
        "priority": st.integers(0, 2),
        "namespace": st.sampled_from(["", "", "salt"]),
        "prompt_logprobs": st.sampled_from([None, None, None, 0]),
        "stop_token_ids": st.sampled_from([(), (4, 5, 6)]),
        "ignore_eos": st.booleans(),
        "min_tokens": st.sampled_from([0, 0, 3]),
        "leases": st.lists(st.sampled_from(["a", "b", ("a", 5), ("c", 2)]), max_size=3),
    }
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), SUBMITS),
        st.tuples(st.just("turn"), st.integers(1, 6)),
        st.tuples(st.just("abort"), st.integers(0, 9)),
        st.tuples(st.just("release"), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("stop"), st.tuples(st.integers(0, 9), st.integers(0, 2))),
    ),
    min_size=3,
    max_size=25,
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=ENGINES, actions=ACTIONS)
def test_any_scenario(make_engine, values, actions):
    """Red if any interleaving of commands, chunks, hits, copies, preemptions and overlap breaks a promise. The worker
    reads every context back; the harness checks the ledger every turn and the events of every request."""
    engine = make_engine(**values)
    interrupted, requests = set(), {}
    for kind, value in actions:
        match kind:
            case "submit":
                name = f"r{len(requests)}"
                requests[name] = value
                engine.submit(name, seed=len(requests), **value)
            case "turn":
                engine.turn(value)
            case "abort":
                interrupted.add(f"r{value}")
                engine.abort(f"r{value}")
            case "release":
                engine.release(value)
            case "stop":
                interrupted.add(f"r{value[0]}")
                engine.stop(f"r{value[0]}", value[1])
    engine.run()
    engine.release("a", "b", "c")
    engine.turn()
    assert engine.num_leased_pages == engine.scheduler._ledger.stats().num_leased == 0
    if not values["prefix_cache"]:
        stats = engine.scheduler.stats(0.0)
        assert stats.pages_free == stats.pages_total
    served = [name for name in requests if name not in interrupted and isinstance(engine.terminal(name), Finished)]
    for name in served[:2]:
        alone = make_engine(num_pages=values["num_pages"], page_size=values["page_size"])
        alone.submit(name, seed=int(name[1:]) + 1, **requests[name])
        alone.run()
        assert engine.seen[name].tokens == alone.seen[name].tokens
        assert engine.seen[name].finish == alone.seen[name].finish
        assert engine.seen[name].prompt_logprobs == alone.seen[name].prompt_logprobs
