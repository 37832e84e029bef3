"""Aborts, stops, failures and shutdown, in every state a request can be in."""

from __future__ import annotations

import pytest

from phloem.core.errors import RequestFailed
from phloem.core.result import StepResult
from phloem.core.wire import Dead, Failed, Finished


def assert_aborted(engine, name):
    assert isinstance(engine.terminal(name), Failed)
    assert engine.terminal(name).code == "aborted"


def test_abort_while_waiting(make_engine, depth):
    """Red if the queue keeps it, or it starts anyway."""
    engine = make_engine(depth=depth, max_rows=1)
    engine.submit("a", [3, 4], max_tokens=8, ignore_eos=True)
    engine.submit("b", [3, 5], max_tokens=8, ignore_eos=True)
    engine.turn()
    engine.abort("b")
    engine.run()
    assert_aborted(engine, "b")
    assert engine.tokens("b") == []
    assert isinstance(engine.terminal("a"), Finished)


def test_abort_while_deferred(make_engine, depth):
    """Red if one that waits for another's prefix is forgotten by abort."""
    engine = make_engine(depth=depth, policy="lpm", max_step_tokens=8)
    prefix = list(range(10, 50))
    engine.submit("a", [*prefix, 1], max_tokens=4)
    engine.submit("b", [*prefix, 2], max_tokens=4)
    engine.turn(2)
    assert engine.scheduler.stats(0.0).num_waiting == 1
    engine.abort("b")
    engine.run()
    assert_aborted(engine, "b")


@pytest.mark.parametrize("turns", range(1, 9))
def test_abort_while_it_runs(make_engine, depth, turns):
    """Red if an abort during prefill, decode, or with a step in flight leaks pages or a second terminal event."""
    engine = make_engine(depth=depth, max_step_tokens=8)
    engine.submit("a", list(range(10, 40)), max_tokens=30, n=2, ignore_eos=True)
    engine.submit("b", list(range(10, 39)), max_tokens=30, ignore_eos=True)
    engine.turn(turns)
    engine.abort("a")
    engine.turn(1 + depth)
    assert_aborted(engine, "a")
    engine.turn(2)
    assert len(engine.scheduler._residents.running) <= 1
    engine.run()
    assert isinstance(engine.terminal("b"), Finished)


def test_abort_after_a_preemption(make_engine, depth):
    """Red if a preempted sequence, back in the queue, cannot be aborted."""
    engine = make_engine(depth=depth, num_pages=12, max_rows=4)
    for name in "abcd":
        engine.submit(name, [ord(name)] * 6, max_tokens=30, ignore_eos=True)
    for _ in range(200):
        engine.turn()
        if engine.scheduler.stats(0.0).num_preemptions:
            break
    for name in "dcb":
        engine.abort(name)
    engine.run()
    for name in "bcd":
        assert_aborted(engine, name)
    assert len(engine.tokens("a")) == 30


def test_abort_of_the_unknown_and_the_finished_is_a_no_op(make_engine, depth):
    """Red if it answers, or raises."""
    engine = make_engine(depth=depth)
    engine.submit("a", [3], max_tokens=1)
    engine.run()
    engine.abort("a")
    engine.abort("nobody")
    engine.stop("a")
    engine.stop("nobody")
    engine.turn(2)
    assert isinstance(engine.terminal("a"), Finished)


def test_stop_finishes_one_choice(make_engine, depth):
    """Red if Stop ends the request, is ignored, or lets a later token of the choice out (harness)."""
    engine = make_engine(depth=depth)
    engine.submit("a", [3, 4], max_tokens=20, n=2, ignore_eos=True)
    engine.turn(6)
    engine.stop("a", 0)
    engine.stop("a", 0)
    engine.stop("a", 7)
    engine.run()
    assert (engine.finish("a", 0), engine.finish("a", 1)) == ("stop", "length")
    assert len(engine.tokens("a", 0)) < 20 == len(engine.tokens("a", 1))
    assert isinstance(engine.terminal("a"), Finished)


def test_stop_of_every_choice_finishes_the_request(make_engine, depth):
    """Red if a request whose choices were all stopped, one still waiting, never ends."""
    engine = make_engine(depth=depth, max_rows=1)
    engine.submit("a", [3, 4], max_tokens=20, n=2, ignore_eos=True)
    engine.turn(3)
    engine.stop("a", 1)
    engine.stop("a", 0)
    engine.run()
    assert isinstance(engine.terminal("a"), Finished)


def test_shutdown_drains(make_engine, depth):
    """Red if drain drops what waits, or lets new requests in."""
    engine = make_engine(depth=depth, max_rows=1)
    for name in "abc":
        engine.submit(name, [3], max_tokens=3)
    engine.turn()
    engine.shutdown()
    engine.submit("late", [3])
    engine.loop.run()
    engine._read()
    assert all(isinstance(engine.terminal(name), Finished) for name in "abc")
    assert engine.terminal("late").code == "overloaded"


def test_shutdown_without_drain_refuses_what_waits(make_engine, depth):
    """Red if what runs is cut off, or what waits is served."""
    engine = make_engine(depth=depth, max_rows=1)
    for name in "abc":
        engine.submit(name, [3], max_tokens=6, ignore_eos=True)
    engine.turn(2)
    engine.shutdown(drain=False)
    engine.loop.run()
    engine._read()
    assert len(engine.tokens("a")) == 6
    assert_aborted(engine, "b")
    assert_aborted(engine, "c")


class Faulty:
    """A worker whose steps can go wrong on command: per row, as a whole, or for good."""

    def __init__(self, worker):
        self.worker = worker
        self.fail_rows = ()
        self.error = None

    def prepare(self):
        return self.worker.prepare()

    def submit(self, plan):
        handle = self.worker.submit(plan)
        return FaultyHandle(handle, self.fail_rows, self.error)

    def close(self):
        self.worker.close()


class FaultyHandle:
    def __init__(self, handle, fail_rows, error):
        self.handle, self.fail_rows, self.error = handle, fail_rows, error

    def wait(self):
        if self.error is not None:
            raise self.error
        result = self.handle.wait()
        kept = [(row, tokens) for row, tokens in zip(result.rows, result.tokens) if row not in self.fail_rows]
        return StepResult(
            step=result.step,
            rows=tuple(row for row, _ in kept),
            tokens=tuple(tokens for _, tokens in kept),
            failed=tuple((row, "not a number") for row in self.fail_rows if row in result.rows),
        )


def faulty_engine(make_engine, depth):
    engine = make_engine(depth=depth, wrap_worker=Faulty)
    for name in "abc":
        engine.submit(name, [3, ord(name)], max_tokens=12, ignore_eos=True)
    engine.turn(3)
    return engine, engine.worker.worker


def test_row_that_fails_takes_only_its_request_with_it(make_engine, depth):
    """Red if one bad row fails the step, or the row is leaked."""
    engine, worker = faulty_engine(make_engine, depth)
    worker.fail_rows = (1,)
    engine.turn()
    worker.fail_rows = ()
    engine.run()
    assert engine.terminal("b") == Failed("b", "request_failed", "not a number")
    assert len(engine.tokens("a")) == len(engine.tokens("c")) == 12


def test_step_that_fails_takes_its_rows_with_it_and_the_engine_goes_on(make_engine, depth):
    """Red if a lost step hangs its requests, or ends the engine though the worker can go on."""
    engine, worker = faulty_engine(make_engine, depth)
    worker.error = RequestFailed("out of memory in this step")
    engine.turn()
    worker.error = None
    engine.submit("later", [5], max_tokens=3, ignore_eos=True)
    engine.run()
    for name in "abc":
        assert engine.terminal(name).code == "request_failed"
    assert len(engine.tokens("later")) == 3


def test_any_other_error_is_the_end_and_everybody_hears_of_it(make_engine, depth):
    """Red if open requests hang when the worker dies, or the loop swallows the error."""
    engine, worker = faulty_engine(make_engine, depth)
    worker.error = ZeroDivisionError("boom")
    with pytest.raises(ZeroDivisionError):
        engine.loop.run()
    events = engine.outbox.poll(0.0)
    assert {event.request_id for event in events if isinstance(event, Failed)} == {"a", "b", "c"}
    assert events[-1] == Dead("engine_dead", "ZeroDivisionError: boom")
