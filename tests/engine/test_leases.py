"""Prefix leases: what somebody will come back for is still there, and never the reason that others cannot go on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from phloem.core.wire import Failed, Finished
from phloem.runtime.record import Recorder, RecordingScheduler, replay

PROMPT = list(range(10, 26))


def flood(engine, *, num_requests, length=8):
    """Prompts that nobody asks for again, each a namespace of its own."""
    for index in range(num_requests):
        engine.submit(f"flood{index}", [50 + index] * length, max_tokens=4, ignore_eos=True, namespace=f"f{index}")
    engine.run()


def cached_when_asked_again(engine, prompt):
    engine.submit("again", prompt, max_tokens=1)
    engine.run()
    return engine.terminal("again").num_cached_tokens


@pytest.mark.parametrize("leases", [(), ("run/0",)], ids=["cached", "leased"])
def test_a_leased_prefix_outlives_the_memory_pressure_between_two_requests(make_engine, depth, leases):
    """Red if a lease does not keep what its request computed, to the last token that was; the case without one shows
    that the pressure is there."""
    engine = make_engine(depth=depth, num_pages=16)
    engine.submit("r", PROMPT, max_tokens=6, ignore_eos=True, leases=leases)
    engine.run()
    said = [*PROMPT, *engine.tokens("r")]
    flood(engine, num_requests=12)
    assert cached_when_asked_again(engine, [*said, 7]) == (len(said) - 1 if leases else 0)
    engine.release("run/0")
    engine.run()
    assert engine.num_leased_pages == 0


def test_part_of_a_prompt_may_be_leased_for_somebody_else(make_engine):
    """Red if a branch cannot keep what its siblings will ask for without its own part."""
    engine = make_engine(num_pages=16)
    engine.submit("branch", [*PROMPT, 1, 2, 3, 4, 5], max_tokens=6, ignore_eos=True, leases=[("base", 14)])
    engine.run()
    assert engine.num_leased_pages == 4
    flood(engine, num_requests=12)
    assert 14 <= cached_when_asked_again(engine, [*PROMPT[:14], 9, 9, 9, 9]) < 18


def test_a_lease_grows_and_never_shrinks(make_engine):
    """Red if a request that knows less of a state takes away what another keeps of it, or the old pages stay leased."""
    engine = make_engine()
    engine.submit("long", PROMPT, max_tokens=1, leases=["s"])
    engine.run()
    assert engine.num_leased_pages == 4
    engine.submit("short", [*PROMPT, 8], max_tokens=1, leases=[("s", 8)])
    engine.run()
    assert engine.num_leased_pages == 4
    engine.submit("longer", [*PROMPT, *range(40, 49)], max_tokens=1, leases=["s"])
    engine.run()
    assert engine.num_leased_pages == 7
    engine.release("s")
    engine.run()
    assert engine.num_leased_pages == 0


def test_leases_yield_when_nothing_else_would_make_room(make_engine, depth):
    """Red if a lease is the reason that a request waits for ever, or that one is preempted."""
    engine = make_engine(depth=depth, num_pages=16)
    engine.submit("r", PROMPT, max_tokens=12, ignore_eos=True, leases=["s"])
    engine.run()
    assert engine.num_leased_pages == 7
    engine.submit("large", [1] * 40, max_tokens=20, ignore_eos=True)
    engine.run()
    assert isinstance(engine.terminal("large"), Finished)
    assert engine.num_leased_pages == 0
    assert engine.scheduler.stats(0.0).num_preemptions == 0


def test_leases_yield_before_anybody_is_preempted(make_engine, depth):
    """Red if a running sequence that finds no page is sent back while a lease could make room."""
    engine = make_engine(depth=depth, num_pages=12, policy="fcfs")
    engine.submit("r", PROMPT, max_tokens=4, ignore_eos=True, leases=["s"])
    engine.run()
    engine.scheduler._estimate.share = engine.scheduler._estimate.margin = 0.01  # short answers, it believes
    engine.submit("grows", [2, 3], max_tokens=45, ignore_eos=True)
    engine.run()
    assert engine.scheduler.stats(0.0).num_preemptions == 0
    assert engine.num_leased_pages == 0


def test_leases_yield_before_an_urgent_request_displaces_another(make_engine):
    """Red if a running sequence is sent back for a more important one although leases could make room."""
    engine = make_engine(num_pages=16, policy="priority")
    engine.submit("r", PROMPT, max_tokens=12, ignore_eos=True, leases=["s"])
    engine.run()
    engine.submit("runs", [2] * 8, max_tokens=12, ignore_eos=True)
    engine.turn(2)
    engine.submit("urgent", [3] * 12, max_tokens=16, ignore_eos=True, priority=1)
    engine.run()
    assert engine.scheduler.stats(0.0).num_preemptions == 0
    assert engine.num_leased_pages == 0


def test_leases_yield_in_order(make_engine):
    """Red if something else decides who gives way than priority, then age."""
    engine = make_engine(num_pages=32)
    for index, (name, priority) in enumerate([("old", 0), ("low", -1), ("new", 0), ("high", 1)]):
        engine.submit(name, [60 + index] * 8, max_tokens=1, priority=priority, leases=[name])
        engine.run()
    leases, order = engine.scheduler._residents.leases, []
    while leases.num_pages:
        before = set(leases._entries)
        assert leases.yield_last()
        order += before - set(leases._entries)
    assert order == ["low", "new", "old", "high"]
    assert not leases.yield_last()


def test_leases_take_half_of_the_pool_at_most(make_engine):
    """Red if leases that nobody needs room for yet can fill the memory."""
    engine = make_engine(num_pages=16)
    for index in range(6):
        engine.submit(f"r{index}", [60 + index] * 8, max_tokens=1, leases=[f"s{index}"])
        engine.run()
    assert engine.num_leased_pages == 8


@pytest.mark.parametrize("how", ["abort waiting", "abort running", "stop", "finish"])
def test_who_leaves_a_lease_behind(make_engine, depth, how):
    """Red if an aborted request leases anything, or one that the front end stops does not."""
    engine = make_engine(depth=depth)
    engine.submit("r", PROMPT, max_tokens=5, ignore_eos=True, leases=["s"])
    if how != "abort waiting":
        engine.turn(3)
    if how.startswith("abort"):
        engine.abort("r")
    elif how == "stop":
        engine.stop("r")
    engine.run()
    assert isinstance(engine.terminal("r"), Failed if how.startswith("abort") else Finished)
    assert (engine.num_leased_pages > 0) is not how.startswith("abort")


def test_a_release_right_behind_the_end_leaves_nothing(make_engine):
    """Red if a lease is only taken when the last plan in flight comes back, after it was released."""
    engine = make_engine(depth=1)
    engine.submit("r", PROMPT, max_tokens=30, leases=["s"])
    engine.turn(3)
    engine.stop("r")
    engine.release("s", "never there")
    engine.run()
    assert engine.num_leased_pages == 0


def test_without_the_prefix_cache_there_are_no_leases(make_engine):
    """Red if pages are leased that nobody could ever find."""
    engine = make_engine(prefix_cache=False)
    engine.submit("r", PROMPT, max_tokens=5, leases=["s"])
    engine.run()
    assert engine.num_leased_pages == 0


def test_a_recording_with_leases_replays(make_engine, depth, tmp_path: Path):
    """Red if a lease depends on anything that the recording does not have."""
    file = io.BytesIO()
    changes = {"depth": depth, "num_pages": 20}
    settings = make_engine(**changes).settings
    engine = make_engine(wrap=lambda it: RecordingScheduler(it, Recorder(file, settings=settings)), **changes)
    for index in range(8):
        leases = [f"s{index}", ("shared", 9)]
        engine.submit(f"r{index}", [*PROMPT[:9], index, index], max_tokens=9, leases=leases, ignore_eos=True)
        engine.turn(index)
        engine.release(f"s{index - 3}")
    engine.run()
    path = tmp_path / "leases.phloem"
    path.write_bytes(file.getvalue())
    assert replay(path) >= len(engine.worker.plans) > 10


@pytest.mark.parametrize(("base", "waits"), [(12, True), (7, False), (None, False)])
def test_siblings_wait_for_what_they_say_they_share(make_engine, base, waits):
    """Red if a prefix shorter than a page is computed by every branch of a fork, or one that is hardly worth a step, or
    that nobody declared, makes requests wait."""
    engine = make_engine(page_size=32, policy="lpm", max_step_tokens=128)
    for index in range(4):
        leases = [("base", base)] if base else []
        engine.submit(f"r{index}", [*PROMPT[: base or 12], 60 + index, 7, 7], max_tokens=4, leases=leases)
    engine.run()
    shared = base or 12
    num_prompt_tokens = shared + 4 * 3 if waits else 4 * (shared + 3)
    assert engine.null.num_computed_tokens == num_prompt_tokens + 4 * 3
    assert len(engine.worker.plans[0].starts) == (1 if waits else 4)
