"""Two engines on null workers that read every context back: prompts computed by one, continued by the other."""

from __future__ import annotations

import threading
import time

import pytest

from phloem.core.clock import MonotonicClock
from phloem.core.request import SamplingParams
from phloem.core.wire import Abort, Failed, Finished, Received, Reserve, Shutdown, Submit, Tokens
from phloem.parallel.transfer.link import Link, TransferError
from phloem.runtime.handover.fetch import FetchGate
from phloem.runtime.handover.give import GiveGate
from phloem.runtime.loop import Loop
from phloem.runtime.mailbox import Mailbox
from phloem.runtime.null import NullWorker, hash_chooser
from phloem.runtime.record import Recorder, RecordingScheduler, replay
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler

SETTINGS = SchedulerSettings(num_pages=256, page_size=4, max_rows=8, max_step_tokens=16, max_model_len=512)
PROMPT = tuple(range(100, 190))  # 22 whole pages, more than a step


class Replica:
    """An engine on a thread of its own. `make_gate` puts it in its role."""

    def __init__(self, make_gate, *, record=None, step_s=0.001, **changes):
        values = {name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__} | changes
        settings = SchedulerSettings(**values)
        self.scheduler = make_scheduler(settings)
        self._file = None if record is None else record.open("wb")
        decider = self.scheduler
        if self._file is not None:
            decider = RecordingScheduler(decider, Recorder(self._file, settings=settings))
        self.worker = NullWorker(
            num_pages=settings.num_pages,
            page_size=settings.page_size,
            max_rows=settings.max_rows,
            choose=hash_chooser(vocab_size=97),
            step_s=step_s,
        )
        self.inbox, self.outbox = Mailbox(), Mailbox()
        self.gate = make_gate(inbox=self.inbox, outbox=self.outbox, pages=self.worker.page_bytes)
        loop = Loop(
            scheduler=decider, worker=self.worker, inbox=self.gate, outbox=self.gate, clock=MonotonicClock(), depth=0
        )
        self._thread = threading.Thread(target=loop.run, daemon=True)
        self._thread.start()

    def ask(self, name, prompt=PROMPT, *, kv_from=None, max_tokens=8):
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0, seed=1, ignore_eos=True)
        self.inbox.send([Submit(name, prompt, sampling, kv_from=kv_from)])

    def answer(self, name):
        """The tokens and the terminal event."""
        tokens = []
        for _ in range(1000):
            for event in self.outbox.poll(10.0):
                match event:
                    case Tokens(request_id, _, ids) if request_id == name:
                        tokens += ids
                    case Finished(request_id) | Failed(request_id) if request_id == name:
                        return tokens, event
        raise AssertionError("no answer")

    def close(self):
        """Idle, nothing is leased but what was asked for by name."""
        self.inbox.send([Shutdown()])
        self._thread.join(10)
        assert not self._thread.is_alive(), "the engine hangs"
        self.gate.close()
        self.scheduler.check()
        assert not self.scheduler._residents.transfers.are_open, "a transfer still holds pages"
        assert not self.scheduler._residents.leases.num_pages, "what arrived is leased for ever"
        if self._file is not None:
            self._file.close()


def prefill_gate(**ends):
    return GiveGate(**ends, host="127.0.0.1", port=0)


@pytest.fixture
def prefill():
    replica = Replica(prefill_gate)
    yield replica
    replica.close()


@pytest.fixture
def decode():
    replica = Replica(FetchGate)
    yield replica
    replica.close()


def aggregated(max_tokens=8):
    """What one replica alone answers."""
    replica = Replica(FetchGate)
    replica.ask("a", max_tokens=max_tokens)
    tokens, _ = replica.answer("a")
    replica.close()
    return tokens


def test_pages_come_from_the_other_replica(prefill, decode) -> None:
    """Red if a page arrives in the wrong place (the worker reads every context back), the prompt is computed again on
    the decode side, or its cache does not know what arrived."""
    decode.ask("a", kv_from=prefill.gate.address)
    tokens, end = decode.answer("a")
    assert tokens == aggregated()
    assert end.num_cached_tokens == 88  # whole pages; the rest, and the logits, are its own
    assert prefill.worker.num_computed_tokens == 88
    decode.ask("b")
    assert decode.answer("b")[1].num_cached_tokens >= 88


def test_only_what_is_not_cached_travels(prefill, decode) -> None:
    """Red if a cached page is reserved or sent again, or a prefix shared by two transfers ends up twice."""
    decode.ask("a", PROMPT[:41])
    decode.answer("a")
    before = decode.worker.num_computed_tokens
    decode.ask("b", kv_from=prefill.gate.address)
    tokens, end = decode.answer("b")
    assert tokens == aggregated()
    assert end.num_cached_tokens == 88
    assert decode.worker.num_computed_tokens - before == 2 + 7


def test_many_at_once(prefill, decode) -> None:
    """Red if transfers mix, or pages pinned by them make either engine stand still."""
    prompts = {f"r{i}": tuple(range(i, i + 60)) for i in range(12)}
    for name, prompt in prompts.items():
        decode.ask(name, prompt, kv_from=prefill.gate.address)
    ends = {}
    while len(ends) < len(prompts):
        for event in decode.outbox.poll(10.0):
            if isinstance(event, Finished | Failed):
                ends[event.request_id] = event
    assert all(isinstance(end, Finished) for end in ends.values())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:9"])
def test_nobody_there(decode, address: str) -> None:
    """Red if a request fails because its prefill replica does."""
    decode.ask("a", kv_from=address)
    assert decode.answer("a")[0] == aggregated()


def test_another_model_is_refused(prefill) -> None:
    """Red if pages of another layout or model are taken: the request is computed instead."""
    other = Replica(FetchGate, page_size=8)
    other.ask("a", kv_from=prefill.gate.address)
    _, end = other.answer("a")
    assert isinstance(end, Finished)
    assert end.num_cached_tokens == 0
    other.close()


@pytest.mark.parametrize("num_good", [0, 5])
def test_a_transfer_that_breaks_is_computed_to_its_end(prefill, decode, monkeypatch, num_good: int) -> None:
    """Red if corrupt bytes are used, a broken transfer fails its request, or what came before it is thrown away."""
    read, pieces = Link.read_payload, []

    def corrupt(self, piece, *, num_bytes):
        payload = read(self, piece, num_bytes=num_bytes)
        pieces.append(piece)
        if len(pieces) > num_good:
            raise TransferError("corrupt bytes")
        return payload

    monkeypatch.setattr(Link, "read_payload", corrupt)
    decode.ask("a", kv_from=prefill.gate.address)
    tokens, end = decode.answer("a")
    assert tokens == aggregated()
    assert end.num_cached_tokens < 88
    assert (end.num_cached_tokens > 0) == (num_good > 0)


def test_an_abort_ends_the_transfer(decode) -> None:
    """Red if an aborted request comes back to life when its pages arrive, or its pages stay reserved."""
    slow = Replica(prefill_gate, step_s=0.05)
    decode.ask("a", kv_from=slow.gate.address)
    decode.inbox.send([Abort("a")])
    _, end = decode.answer("a")
    assert (end.code, isinstance(end, Failed)) == ("aborted", True)
    slow.close()


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(200, 8), (100, 90)], ids=["waits", "runs"])
def test_who_needs_reserved_pages_waits_for_the_transfer(num_prompt: int, max_tokens: int) -> None:
    """Red if a request that finds no page but those in transfer makes the engine spin, die, or sleep for ever."""
    replica = Replica(prefill_gate, num_pages=64)
    replica.inbox.send([Reserve("x", tuple(range(32 * 4)))])
    replica.ask("a", tuple(range(num_prompt)), max_tokens=max_tokens)
    time.sleep(0.3)
    assert not any(isinstance(event, Finished | Failed) for event in replica.outbox.poll(0.0))
    replica.inbox.send([Received("x", 0)])
    _, end = replica.answer("a")
    assert (type(end), end.num_generated_tokens) == (Finished, max_tokens)
    replica.close()


def test_transfers_take_a_share_at_most() -> None:
    """Red if prompts that arrive can take the whole pool from those who run."""
    scheduler = make_scheduler(SETTINGS)
    prompts = {name: tuple(range(start, start + 4 * 64)) for name, start in (("a", 0), ("b", 1000), ("c", 2000))}
    reserved = [scheduler.admit(Reserve(name, tokens), 0.0)[0] for name, tokens in prompts.items()]
    assert [len(event.pages) for event in reserved] == [64, 64, 0]
    for name in ("a", "b"):
        scheduler.admit(Received(name, 0), 0.0)
    scheduler.check()
    assert scheduler.stats(0.0).pages_free == SETTINGS.num_pages


def test_decisions_are_on_record(prefill, tmp_path) -> None:
    """Red if reserving or receiving depends on anything but commands."""
    file = tmp_path / "r.phloem"
    replica = Replica(FetchGate, record=file)
    replica.ask("a", kv_from=prefill.gate.address)
    replica.answer("a")
    replica.close()
    assert replay(file) > 0
