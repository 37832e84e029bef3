"""The gate: what waits for its grammar, what overtakes it, and that each request still has one terminal event."""

from __future__ import annotations

import threading
import time

import pytest

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint, SamplingParams
from phloem.core.wire import Abort, Failed, Shutdown, Stop, Submit
from phloem.runtime.grammar.gate import GrammarGate
from phloem.runtime.mailbox import Mailbox

PLAIN = SamplingParams()


class Grammars:
    """Compiles when it is told to."""

    def __init__(self):
        self.may_go = threading.Event()
        self.compiled = set()

    def has(self, constraint):
        return constraint in self.compiled

    def compile(self, constraint):
        assert self.may_go.wait(10)
        if constraint.text == "bad":
            raise InvalidRequest("no such grammar")
        if constraint.text == "defect":
            raise RuntimeError("defect")
        self.compiled.add(constraint)


@pytest.fixture
def post():
    return Post()


class Post:
    def __init__(self):
        self.inbox, self.outbox, self.grammars = Mailbox(), Mailbox(), Grammars()
        self.gate = GrammarGate(inbox=self.inbox, outbox=self.outbox, grammars=self.grammars)

    def submit(self, name, text=None):
        sampling = PLAIN if text is None else SamplingParams(constraint=Constraint("regex", text))
        command = Submit(name, (1,), sampling)
        self.inbox.send([command])
        return command

    def send(self, *commands):
        self.inbox.send(list(commands))

    def poll(self):
        return self.gate.poll(0.0)

    def wait(self):
        self.grammars.may_go.set()
        return self.gate.poll(10.0)


def test_a_new_grammar_holds_back_its_own_request_only(post):
    """Red when a request waits for another's grammar, or reaches the scheduler before its own is compiled."""
    held, plain = post.submit("held", "a"), post.submit("plain")
    assert post.poll() == [plain]
    assert post.poll() == []
    assert post.wait() == [held]
    again = post.submit("again", "a")
    assert post.poll() == [again]


def test_a_wait_ends_when_a_grammar_is_ready(post):
    """Red when an idle engine sleeps on while a compiled request waits, or returns before anything has come."""
    post.submit("held", "a")
    began_s = time.monotonic()
    assert post.gate.poll(0.05) == []
    assert time.monotonic() - began_s >= 0.05
    threading.Timer(0.05, post.grammars.may_go.set).start()
    assert [command.request_id for command in post.gate.poll(None)] == ["held"]


@pytest.mark.parametrize(("text", "code"), [("bad", "invalid_value"), ("defect", "request_failed")])
def test_a_grammar_that_fails_is_a_terminal_event(post, text, code):
    """Red when a request whose grammar cannot be compiled never ends, or ends the engine."""
    post.submit("held", text)
    assert post.poll() == []
    post.grammars.may_go.set()
    assert post.gate.poll(0.3) == []
    [event] = post.outbox.poll(1.0)
    assert (event.request_id, event.code) == ("held", code)
    assert post.poll() == []
    assert post.outbox.poll(0.0) == []


def test_a_held_request_can_be_aborted(post):
    """Red when an abort of a held request is lost, passed on, or the request starts all the same."""
    post.submit("held", "a")
    post.poll()
    post.send(Stop("held", 0), Abort("held"), Abort("other"))
    assert post.poll() == [Abort("other")]
    assert post.outbox.poll(0.0) == [Failed("held", "aborted", "aborted by the caller")]
    post.grammars.may_go.set()
    assert post.gate.poll(0.2) == []


def test_an_id_that_is_held_is_not_taken_twice(post):
    """Red when two requests of one id wait, so that one never ends."""
    post.submit("held", "a")
    post.submit("held", "b")
    assert post.poll() == []
    [event] = post.outbox.poll(0.0)
    assert event.code == "invalid_value"
    assert [command.request_id for command in post.wait()] == ["held"]


def test_shutdown_waits_for_what_is_held_or_ends_it(post):
    """Red when the engine drains away before a held request was served, or a quick shutdown leaves it open."""
    post.submit("held", "a")
    post.send(Shutdown(drain=True))
    assert post.poll() == []
    post.grammars.may_go.set()
    seen = []
    while len(seen) < 2:
        seen += post.gate.poll(1.0)
    assert [type(command) for command in seen] == [Submit, Shutdown]
    other = Post()
    other.submit("held", "a")
    other.send(Shutdown(drain=False))
    assert other.poll() == [Shutdown(drain=False)]
    assert [event.code for event in other.outbox.poll(0.0)] == ["aborted"]
    other.grammars.may_go.set()
