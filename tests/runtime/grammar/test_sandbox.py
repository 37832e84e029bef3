"""The sandbox: verdicts with a reason, deadlines and limits that end processes, and a memory of what failed."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import msgspec
import pytest
from tests.runtime.grammar.conftest import PERSON, schema

from phloem.core.errors import Overloaded, RequestFailed
from phloem.core.request import Constraint
from phloem.runtime.grammar import sandbox as module
from phloem.runtime.grammar import warden
from phloem.runtime.grammar.frames import Trial, Verdict, read_frame, write_frame
from phloem.runtime.grammar.sandbox import Sandbox, Verdicts
from phloem.runtime.grammar.vocabulary import Vocabulary

SLOW = schema({"type": "object", "properties": {f"property_{index}": {"type": "integer"} for index in range(13_000)}})
"""Its compilation takes many seconds: the grammar library is quadratic in the number of optional properties."""

NO_LIMIT_S = 1e9
"""Whatever else this machine is doing."""


def nested(depth):
    return Constraint("json_schema", '{"items":' * depth + "true" + "}" * depth)


@pytest.fixture(scope="module")
def sandbox(vocabulary):
    made = Sandbox(lambda: vocabulary, credit_s=NO_LIMIT_S, deadline_s=1.0)
    yield made
    made.close()


GOOD = {
    "schema": schema(PERSON),
    "recursive": schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}}}}
    ),
    "large enum": schema({"enum": [f"value number {index}" for index in range(20_000)]}),
    "catastrophic to others": Constraint("regex", "(a+)+$"),
    "alternatives": Constraint("regex", "|".join(f"x{index}y*" for index in range(5_000))),
}

BAD = {
    "unknown type": (schema({"type": "objct"}), "objct"),
    "unsupported keyword": (schema({"type": "string", "not": {"const": "x"}}), "not"),
    "remote reference": (schema({"$ref": "https://example.com/x.json"}), "example.com"),
    "contradictory numbers": (schema({"type": "integer", "minimum": 5, "maximum": 3}), "5"),
    "contradictory types": (schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), "incompatible types"),
    "only itself": (schema({"$ref": "#"}), "no text satisfies it"),
    "its own property": (
        schema({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}), "oo many items"),
    "too complex to be followed": (Constraint("regex", "(a?){500}a{500}"), "too many"),
    "not JSON": (Constraint("json_schema", "{"), "EOF"),
    "deep": (nested(5_000), "recursion"),
    "regex": (Constraint("regex", "(a"), "unclosed group"),
    "backreference": (Constraint("regex", r"(a)\1"), "backreferences"),
    "look-around": (Constraint("regex", "(?=a)b"), "look-around"),
    "deep regex": (Constraint("regex", "(" * 500 + "a" + ")" * 500), "nest"),
    "grammar": (Constraint("grammar", "start: nowhere"), "nowhere"),
    "empty grammar": (Constraint("grammar", " \n"), "empty"),
    "no choices": (Constraint("choice", "{}"), "array"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_served_passes(sandbox, name):
    """Red when the sandbox refuses what the engine could do."""
    assert sandbox.check(GOOD[name]).result(30) == ""


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_served_is_refused_with_the_construct(sandbox, name):
    """Red when a bad constraint passes, hangs, or its verdict does not say what is wrong."""
    constraint, construct = BAD[name]
    began_s = time.monotonic()
    verdict = sandbox.check(constraint).result(30)
    assert construct in verdict
    assert verdict
    assert len(verdict) < 700
    assert time.monotonic() - began_s < 10


def test_a_deadline_ends_the_process_and_is_remembered(sandbox):
    """Red when a slow compilation is not ended, the next one of it is not refused at once, or others suffer."""
    began_s = time.monotonic()
    assert "longer than 1 s" in sandbox.check(SLOW).result(30)
    assert time.monotonic() - began_s < 8
    began_s = time.monotonic()
    assert "longer than 1 s" in sandbox.check(SLOW).result(0)
    assert time.monotonic() - began_s < 0.2
    assert sandbox.check(Constraint("regex", "after the slow one")).result(30) == ""


def test_a_memory_limit_ends_the_process_not_the_server(vocabulary):
    """Red when a grammar may take any memory."""
    small = Sandbox(lambda: vocabulary, max_bytes=24 << 20)
    try:
        assert "memory" in small.check(GOOD["large enum"]).result(30)
        assert small.check(Constraint("regex", "a")).result(30) == ""
    finally:
        small.close()


def test_one_trial_for_all_who_ask(sandbox, monkeypatch):
    """Red when the same constraint is tried several times at once, or a queue of trials can grow without bound."""
    slow = schema({"type": "object", "properties": {f"another_{index}": {} for index in range(13_000)}})
    first = sandbox.check(slow)
    assert sandbox.check(slow) is first
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    with pytest.raises(Overloaded):
        sandbox.check(Constraint("regex", "one too many"))
    first.result(30)


def wide(name):
    """Another schema that takes many seconds."""
    return schema({"type": "object", "properties": {f"{name}_{index}": {} for index in range(13_000)}})


def test_a_quick_constraint_does_not_wait_for_a_slow_one(vocabulary):
    """Red when an honest schema waits for the deadline of a hostile one that came before it."""
    sandbox = Sandbox(lambda: vocabulary, credit_s=NO_LIMIT_S, deadline_s=5.0)
    try:
        slow = sandbox.check(SLOW)
        for number in range(3):
            assert sandbox.check(Constraint("regex", f"honest {number}")).result(3) == ""
        assert not slow.done()
    finally:
        sandbox.close()


def test_too_many_slow_constraints_are_told_at_once(vocabulary):
    """Red when a flood of slow schemas makes anybody wait for an answer that says only that it was too many, or such a
    one is remembered as bad."""
    sandbox = Sandbox(lambda: vocabulary, credit_s=NO_LIMIT_S, deadline_s=8.0)
    try:
        first = [sandbox.check(wide(name)) for name in ("a", "b")]
        began_s = time.monotonic()
        with pytest.raises(Overloaded) as caught:
            sandbox.check(wide("c")).result(30)
        assert time.monotonic() - began_s < 4
        assert caught.value.retry_after_s > 0
        assert not any(future.done() for future in first)
        assert sandbox._verdicts.get(module._digest(wide("c"))) is None
        assert sandbox.check(Constraint("regex", "honest")).result(3) == ""
    finally:
        sandbox.close()


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_close_ends_trials_under_way(vocabulary):
    """Red when a server that stops waits for a compilation, or leaves one behind that goes on."""
    closing = Sandbox(lambda: vocabulary, credit_s=NO_LIMIT_S, deadline_s=60)
    assert closing.check(Constraint("regex", "warm")).result(30) == ""
    future = closing.check(SLOW)
    time.sleep(0.3)
    workers = children_of(closing._warden._process.pid)
    assert len(workers) == 2, "the slow one, and one for the next"
    began_s = time.monotonic()
    closing.close()
    assert time.monotonic() - began_s < 3
    assert isinstance(future.exception(0), RequestFailed)
    while any(map(is_running, workers)):  # of low priority: ending takes them a moment
        assert time.monotonic() - began_s < 10
        time.sleep(0.05)


def test_a_warden_that_ends_fails_those_who_wait_and_is_replaced(vocabulary):
    """Red when requests wait for ever for a process that was killed, or no constraint is served any more."""
    sandbox = Sandbox(lambda: vocabulary, credit_s=NO_LIMIT_S, deadline_s=30)
    try:
        assert sandbox.check(Constraint("regex", "warm")).result(30) == ""
        waits = sandbox.check(SLOW)
        time.sleep(0.2)
        sandbox._warden.end()
        assert isinstance(waits.exception(10), RequestFailed)
        for number in range(20):
            try:
                verdict = sandbox.check(Constraint("regex", f"again {number}")).result(30)
            except RequestFailed:  # handed to the process that was just ending
                continue
            break
        assert verdict == ""
    finally:
        sandbox.close()


class FakeWorker:
    """A worker that never answers; the test says what it had of the cores."""

    def __init__(self, *_, **__):
        self.source, self.sink = os.pipe()
        self.trial, self.began_s, self.cpu_s = None, 0.0, 0.0
        self.is_waiting = self.is_worn = False
        self.is_gone = True
        made.append(self)

    def begin(self, trial, now_s):
        self.trial, self.began_s, self.cpu_s = trial, now_s, 1.0

    def trial_cpu_s(self):
        return self.cpu_s

    def waits(self, passed_s):
        return self.is_waiting

    def yield_to_all(self):
        pass

    def end(self):
        os.close(self.source)
        os.close(self.sink)


made: list[FakeWorker] = []


def test_slow_constraints_live_on_credit_while_they_compete(monkeypatch):
    """Red when a machine that is busy is kept busier by slow constraints for longer than their credit lasts, or one
    that is idle refuses them."""
    monkeypatch.setattr(warden, "Worker", FakeWorker)
    made.clear()
    (source, sends), (reads, sink) = os.pipe(), os.pipe()
    tested = warden.Warden(None, max_bytes=0, deadline_s=60, credit_s=0.2, source=source, sink=sink)

    def turns(seconds):
        ends_s, is_first = time.monotonic() + seconds, True
        while time.monotonic() < ends_s and (is_first or tested._quick.trial or tested._slow):
            assert tested._turn()
            is_first = False

    def verdict():
        ends_s = time.monotonic() + 20  # however slow this machine is
        while not select.select([reads], [], [], 0)[0]:
            assert time.monotonic() < ends_s
            assert tested._turn()
        return msgspec.msgpack.decode(read_frame(reads), type=Verdict)

    def trial(name):
        write_frame(sends, msgspec.msgpack.encode(Trial(name, Constraint("regex", "a"))))

    trial(b"one")
    turns(0.5)
    assert [worker.trial.key for worker in tested._slow] == [b"one"], "nobody else wants the cores"
    made[0].is_waiting = True
    refused = verdict()
    assert (refused.key, refused.is_overloaded) == (b"one", True)
    assert not tested._slow
    trial(b"two")
    refused = verdict()
    assert (refused.key, refused.is_overloaded) == (b"two", True), "no credit is left"
    monkeypatch.setattr(warden, "CREDIT_RATE", 10)
    trial(b"three")
    turns(0.1)
    assert [worker.trial.key for worker in tested._slow] == [b"three"]
    for descriptor in (source, sends, reads, sink):
        os.close(descriptor)


def test_a_tokenizer_that_cannot_be_constrained(vocabulary):
    """Red when a model without end tokens, or without a readable tokenizer, hangs whoever asks."""
    for bad in (Vocabulary(vocabulary.tokenizer_json, 259, ()), Vocabulary("{}", 259, (1,))):
        broken = Sandbox(lambda bad=bad: bad)
        try:
            assert "cannot follow constraints" in broken.check(Constraint("regex", "a")).result(30)
        except RequestFailed:
            pytest.fail("the process died instead of saying why")
        finally:
            broken.close()


def test_verdicts_are_bounded_by_bytes():
    """Red when what is remembered about hostile constraints can grow without bound."""
    verdicts = Verdicts(10_000)
    for index in range(1_000):
        verdicts.add(str(index).encode(), "x" * 100)
    assert verdicts.get(b"999") is not None
    assert verdicts.get(b"0") is None
    assert len(verdicts._known) < 40
