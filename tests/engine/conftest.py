"""The whole engine but the model: scheduler, ledger and loop on a null worker that checks every plan."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from phloem.core.clock import ManualClock
from phloem.core.request import SamplingParams
from phloem.core.wire import Abort, Failed, Finished, Lease, Release, Shutdown, Stats, Stop, Submit, Tokens
from phloem.runtime.loop import Loop
from phloem.runtime.mailbox import Mailbox
from phloem.runtime.null import NullWorker, hash_chooser
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler

EOS = 1
DEFAULTS = SchedulerSettings(
    num_pages=64, page_size=4, max_rows=8, max_step_tokens=32, max_model_len=256, eos_token_ids=(EOS,), policy="fcfs"
)


@dataclass
class Seen:
    """What the outside saw of one request."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    stop_token: dict[int, int | None] = field(default_factory=dict)
    prompt_logprobs: list[int] = field(default_factory=list)
    logprobs: list[int] = field(default_factory=list)
    terminal: Finished | Failed | None = None


class RecordingWorker:
    """Keeps every plan that passes."""

    def __init__(self, worker):
        self.worker = worker
        self.plans = []
        self.is_warm = True

    def prepare(self):
        return self.worker.prepare()

    def submit(self, plan):
        self.plans.append(plan)
        return self.worker.submit(plan)

    def close(self):
        self.worker.close()


class Engine:
    """A loop under the test's control. Every turn checks the ledger, the plan (in the worker) and the events' order."""

    def __init__(self, *, depth=0, choose=None, wrap_worker=lambda worker: worker, wrap=lambda it: it, **changes):
        values = {name: getattr(DEFAULTS, name) for name in DEFAULTS.__struct_fields__} | changes
        self.settings = SchedulerSettings(**values)
        self.scheduler = make_scheduler(self.settings)
        self.null = NullWorker(
            num_pages=self.settings.num_pages,
            page_size=self.settings.page_size,
            max_rows=self.settings.max_rows,
            choose=choose or hash_chooser(vocab_size=97, avoid=(EOS,)),
        )
        self.worker = RecordingWorker(wrap_worker(self.null))
        self.inbox, self.outbox, self.clock = Mailbox(), Mailbox(), ManualClock()
        self.loop = Loop(
            scheduler=wrap(self.scheduler),
            worker=self.worker,
            inbox=self.inbox,
            outbox=self.outbox,
            clock=self.clock,
            depth=depth,
        )
        self.seen: dict[str, Seen] = {}
        self.stats: list[Stats] = []
        self.events = []

    def submit(self, name, prompt, *, priority=0, namespace="", leases=(), **sampling):
        """Send a request; `leases` are names, or names with a number of tokens. It is taken in at the next turn."""
        self.seen.setdefault(name, Seen())
        named = tuple(Lease(each) if isinstance(each, str) else Lease(*each) for each in leases)
        self.inbox.send([Submit(name, tuple(prompt), SamplingParams(**sampling), priority, namespace, named)])

    def release(self, *leases):
        self.inbox.send([Release(leases)])

    def abort(self, name):
        self.inbox.send([Abort(name)])

    def stop(self, name, choice=0):
        self.inbox.send([Stop(name, choice)])

    def shutdown(self, *, drain=True):
        self.inbox.send([Shutdown(drain)])

    def turn(self, count=1):
        """Some rounds of the loop. Returns whether there is work left."""
        is_busy = True
        for _ in range(count):
            self.clock.advance(0.01)
            is_busy = self.loop.turn()
            self.scheduler.check()
            self._read()
        return is_busy

    def run(self, *, max_turns=20_000):
        """Until idle: then nothing but prefixes is leased, and every request has its terminal event."""
        for _ in range(max_turns):
            if not self.turn():
                break
        else:
            raise AssertionError(f"still busy after {max_turns} turns")
        assert self.scheduler._ledger.stats().num_leased == self.num_leased_pages
        assert all(seen.terminal is not None for seen in self.seen.values())
        return self

    @property
    def num_leased_pages(self):
        """Pages of prefixes that were leased by name."""
        return self.scheduler._residents.leases.num_pages

    def tokens(self, name, choice=0):
        return self.seen[name].tokens.get(choice, [])

    def finish(self, name, choice=0):
        return self.seen[name].finish.get(choice)

    def terminal(self, name):
        return self.seen[name].terminal

    def _read(self):
        for event in self.outbox.poll(0.0):
            self.events.append(event)
            if isinstance(event, Stats):
                self.stats.append(event)
                continue
            seen = self.seen[event.request_id]
            assert seen.terminal is None, f"{event} after the terminal event"
            if isinstance(event, Tokens):
                assert event.choice not in seen.finish, f"{event} after the choice was finished"
                seen.tokens.setdefault(event.choice, []).extend(event.token_ids)
                seen.prompt_logprobs += [entry.token_id for entry in event.prompt_logprobs]
                seen.logprobs += [entry.token_id for entry in event.logprobs]
                if event.finish is not None:
                    seen.finish[event.choice] = event.finish
                    seen.stop_token[event.choice] = event.stop_token
            else:
                seen.terminal = event


@pytest.fixture(scope="session")
def make_engine():
    """`make_engine(depth=0, num_pages=64, ...)` -> Engine; keywords change DEFAULTS."""
    return Engine


@pytest.fixture(params=[0, 1], ids=["depth0", "depth1"])
def depth(request):
    """Overlap: the loop's two modes."""
    return request.param
