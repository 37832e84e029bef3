"""Where requests go, and what a router believes of caches."""

from __future__ import annotations

import numpy as np
import pytest

from phloem.core.errors import ConfigError
from phloem.core.wire import CacheChange
from phloem.parallel.cache_view import CacheView, StaleView
from phloem.parallel.replicas import SESSION_SLACK_TOKENS, Load, Prompt, Routing, make_policy

PAGE = 4


def prompt_of(tokens, *, namespace="", max_tokens=0) -> Prompt:
    return Prompt(np.asarray(tokens, ">u4").tobytes(), namespace=namespace, max_tokens=max_tokens, page_size=PAGE)


def fleet(*cached: Prompt | None) -> list[Load]:
    """Replicas with these prompts in their caches."""
    loads = [Load(f"r{index}") for index in range(len(cached))]
    for load, prompt in zip(loads, cached):
        load.view.apply(CacheChange(1, PAGE, prompt.digests(PAGE) if prompt else (), is_snapshot=True))
    return loads


def test_a_gap_makes_a_view_void() -> None:
    """Red when a lost change is not noticed: the view would promise pages that are gone."""
    view = CacheView()
    view.apply(CacheChange(5, PAGE, (1, 2), is_snapshot=True))
    view.apply(CacheChange(6, PAGE, (3,), (1,)))
    assert [view.num_cached([2, 3]), view.num_cached([1])] == [2, 0]
    with pytest.raises(StaleView):
        view.apply(CacheChange(8, PAGE, (4,)))
    assert not view.is_followed
    assert view.num_cached([2]) == 0


def test_cache_aware_goes_where_the_prefix_is_until_that_costs_more() -> None:
    """Red when cached tokens or load weigh nothing."""
    prompt = prompt_of(range(40))
    loads = fleet(None, prompt, None)
    routing = Routing(make_policy("cache-aware"))
    assert routing.assign(prompt, loads).load is loads[1]
    loads[1].num_tokens = 1000
    assert routing.assign(prompt, loads).load is loads[0]


def test_another_namespace_is_another_prefix() -> None:
    """Red when a salted prompt is sent after somebody else's cache."""
    loads = fleet(None, prompt_of(range(40), namespace="a"))
    assert loads[1].num_cached(prompt_of(range(40), namespace="a")) == 40
    assert loads[1].num_cached(prompt_of(range(40), namespace="b")) == 0


def test_a_burst_of_one_new_prefix_stays_together() -> None:
    """Red when requests in flight are not counted as what they will leave in the cache."""
    loads, routing = fleet(None, None), Routing(make_policy("cache-aware"))
    prompts = [prompt_of([*range(400), 1000 + index]) for index in range(4)]
    sent = [routing.assign(prompt, loads) for prompt in prompts]
    assert len({one.load.name for one in sent}) == 1
    for one in sent:
        one.answered()
        one.end()
    assert [load.num_tokens for load in loads] == [0, 0]
    assert [load.num_requests for load in loads] == [0, 0]
    assert loads[0].num_cached(prompts[0]) == 0  # the replica's events say what it has, not that something was sent


def test_without_events_what_was_sent_is_remembered_up_to_a_bound() -> None:
    """Red when a replica without events is never hit again, or its memory grows for ever."""
    view = CacheView(max_remembered=3)
    for digests in ((1, 2), (3, 4)):
        view.expect(digests)
        view.settle(digests, was_computed=True)
    assert view.num_pages == 3
    assert view.num_cached([2]) == 1
    assert view.num_cached([1]) == 0


def test_a_session_stays_unless_its_replica_is_gone_or_much_busier() -> None:
    """Red when the session header does nothing, or binds for ever."""
    loads, routing = fleet(None, None), Routing(make_policy("round-robin"))
    first = routing.assign(prompt_of([1]), loads, session="s").load
    other = next(load for load in loads if load is not first)
    assert [routing.assign(prompt_of([1]), loads, session="s").load for _ in range(3)] == [first] * 3
    assert routing.assign(prompt_of([1]), [other], session="s").load is other
    other.num_tokens = SESSION_SLACK_TOKENS + 100
    assert routing.assign(prompt_of([1]), loads, session="s").load is first


def test_round_robin_and_least_tokens() -> None:
    """Red when they are not what they are called."""
    loads = fleet(None, None, None)
    routing = Routing(make_policy("round-robin"))
    assert len({routing.assign(prompt_of([1]), loads).load.name for _ in range(3)}) == 3
    loads[0].num_tokens = loads[2].num_tokens = 50
    assert Routing(make_policy("least-tokens")).assign(prompt_of([1]), loads).load is loads[1]
    with pytest.raises(ConfigError, match="cache-aware, least-tokens, round-robin"):
        make_policy("random")
