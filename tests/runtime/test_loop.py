"""The loop's own promises: it waits without spinning, overlaps, speaks ZeroMQ, and says when it is stuck."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import zmq

from phloem.core.clock import ManualClock, MonotonicClock
from phloem.core.plan import StepPlan
from phloem.core.request import SamplingParams
from phloem.core.wire import Abort, Finished, Shutdown, Stats, Submit, decode_events, encode
from phloem.runtime.loop import Loop
from phloem.runtime.mailbox import Mailbox, ZmqInbox, ZmqOutbox
from phloem.runtime.null import NullWorker, hash_chooser
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler

SETTINGS = SchedulerSettings(num_pages=64, page_size=4, max_rows=4, max_step_tokens=16, max_model_len=128)


def null_worker(**changes):
    return NullWorker(num_pages=64, page_size=4, max_rows=4, choose=hash_chooser(vocab_size=97), **changes)


def loop_with(*, worker=None, scheduler=None, inbox=None, outbox=None, clock=None, depth=0):
    return Loop(
        scheduler=scheduler or make_scheduler(SETTINGS),
        worker=worker or null_worker(),
        inbox=inbox or Mailbox(),
        outbox=outbox or Mailbox(),
        clock=clock or MonotonicClock(),
        depth=depth,
    )


def ask(name="a", **sampling):
    return Submit(name, (3, 4, 5), SamplingParams(**({"max_tokens": 4} | sampling)))


def test_zmq_round_trip():
    """Red if the wire's framing changes on one side: one msgpack list of messages a frame, the server binds."""
    context = zmq.Context()
    commands, events = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    commands.bind("inproc://commands")
    events.bind("inproc://events")
    loop = loop_with(
        inbox=ZmqInbox("inproc://commands", context=context), outbox=ZmqOutbox("inproc://events", context=context)
    )
    thread = threading.Thread(target=loop.run)
    thread.start()
    commands.send(encode([ask("a"), ask("b")]))
    commands.send(encode([Shutdown()]))
    finished = []
    while len(finished) < 2:
        assert events.poll(5000)
        finished += [event for event in decode_events(events.recv()) if isinstance(event, Finished)]
    thread.join(5)
    assert not thread.is_alive()
    for socket in (commands, events):
        socket.close(0)


def test_idle_loop_sleeps_and_wakes_at_once():
    """Red if the loop spins while idle, or a command waits for a timeout."""
    inbox, outbox = Mailbox(), Mailbox()
    loop = loop_with(inbox=inbox, outbox=outbox)
    thread = threading.Thread(target=loop.run)
    before_s = time.process_time()
    thread.start()
    time.sleep(0.3)
    spent_s = time.process_time() - before_s
    started_s = time.monotonic()
    inbox.send([ask()])
    seen = []
    while not any(isinstance(event, Finished) for event in seen):
        seen += outbox.poll(5.0)
    waited_s = time.monotonic() - started_s
    inbox.send([Shutdown()])
    thread.join(5)
    assert spent_s < 0.1
    assert waited_s < 0.25


def test_mailbox_waits_no_longer_than_told():
    """Red if poll blocks for ever, or not at all."""
    mailbox = Mailbox()
    started_s = time.monotonic()
    assert mailbox.poll(0.05) == []
    assert 0.04 < time.monotonic() - started_s < 1
    mailbox.send([Abort("a"), Abort("b")])
    assert mailbox.poll(None) == [Abort("a"), Abort("b")]
    assert mailbox.poll(0.0) == []


class Watch:
    """Notes the order of submits and waits."""

    def __init__(self):
        self.log, self.worker, self.is_warm = [], null_worker(), True
        self.num_to_prepare = 0

    def prepare(self):
        if not self.num_to_prepare:
            return False
        self.num_to_prepare -= 1
        self.log.append(("prepare", self.num_to_prepare))
        self.is_warm = not self.num_to_prepare
        return True

    def submit(self, plan):
        self.log.append(("submit", plan.step))
        handle = self.worker.submit(plan)
        watch = self

        class Handle:
            def wait(self):
                watch.log.append(("wait", plan.step))
                return handle.wait()

        return Handle()

    def close(self):
        self.log.append(("close", -1))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_depth_is_the_number_of_steps_planned_ahead(depth):
    """Red if depth 1 waits before it submits the next, or depth 0 runs ahead."""
    watch = Watch()
    loop = loop_with(worker=watch, depth=depth)
    loop._inbox.send([ask(max_tokens=6, ignore_eos=True), Shutdown()])
    loop.run()
    in_flight = most = 0
    for kind, _ in watch.log:
        in_flight += {"submit": 1, "wait": -1, "close": 0}[kind]
        most = max(most, in_flight)
    assert most == depth + 1
    assert [step for kind, step in watch.log if kind == "wait"] == sorted(
        step for kind, step in watch.log if kind == "wait"
    )
    assert watch.log[-1] == ("close", -1)


def test_stats_come_at_most_five_times_a_second_and_at_the_end():
    """Red if every step sends stats, or the last word is out of date."""
    clock, outbox = ManualClock(), Mailbox()
    loop = loop_with(clock=clock, outbox=outbox)
    loop._inbox.send([ask(max_tokens=60, ignore_eos=True)])
    while loop.turn():
        clock.advance(0.01)
    events = outbox.poll(0.0)
    stats = [event for event in events if isinstance(event, Stats)]
    assert 2 <= len(stats) <= 6
    assert isinstance(events[-1], Stats)
    assert stats[-1].num_running == 0
    assert loop.turn() is False
    assert outbox.poll(0.0) == []


def test_stats_say_whether_the_worker_is_warm():
    """Red if /ready would call a worker warm that still captures its steps."""
    watch, outbox = Watch(), Mailbox()
    loop = loop_with(worker=watch, outbox=outbox)
    for is_warm in (False, True):
        watch.is_warm = is_warm
        loop._inbox.send([ask(f"warm-{is_warm}", max_tokens=2, ignore_eos=True)])
        while loop.turn():
            pass
        stats = [event for event in outbox.poll(0.0) if isinstance(event, Stats)]
        assert stats[-1].is_warm is is_warm


def test_an_idle_loop_prepares_before_it_waits():
    """Red if a busy loop prepares, an idle one waits for commands while something is left to prepare, or nobody hears
    that the worker is warm now."""
    watch, outbox = Watch(), Mailbox()
    loop = loop_with(worker=watch, outbox=outbox)
    watch.num_to_prepare, watch.is_warm = 2, False
    loop._inbox.send([ask(max_tokens=3, ignore_eos=True)])
    assert loop.turn()
    assert watch.log[0] == ("prepare", 1), "nothing had come yet"
    while loop.turn():
        assert watch.num_to_prepare == 1, "busy"
    assert watch.log[-1] == ("prepare", 0)
    assert outbox.poll(0.0)[-1].is_warm
    assert loop.turn(timeout_s=0.0) is False


class Stuck:
    """A decider with work that never plans any."""

    has_work, is_drained = True, False

    def plan(self, now_s):
        return StepPlan(step=0)

    def fail_all(self, code, message):
        return []


def test_scheduler_that_plans_nothing_is_a_loud_error():
    """Red if a dead end would spin silently."""
    loop = loop_with(scheduler=Stuck())
    with pytest.raises(AssertionError, match="plans nothing"):
        loop.run()


def test_engine_core_imports_without_torch():
    """Red if anything here reaches torch: a null engine must start in milliseconds and run anywhere."""
    code = "import sys, phloem.runtime.loop, phloem.runtime.record, phloem.runtime.null, phloem.runtime.mailbox;" \
        "assert 'torch' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
