"""The sandbox: verdicts with a reason, deadlines and limits that end processes, and a memory of what failed."""

from __future__ import annotations

import json
import time

import pytest
from tests.runtime.grammar.conftest import PERSON, schema

from phloem.core.errors import Overloaded, RequestFailed
from phloem.core.request import Constraint
from phloem.runtime.grammar import sandbox as module
from phloem.runtime.grammar.sandbox import Sandbox, Verdicts
from phloem.runtime.grammar.vocabulary import Vocabulary

SLOW = schema({"type": "object", "properties": {f"property_{index}": {"type": "integer"} for index in range(13_000)}})
"""Its compilation takes many seconds: the grammar library is quadratic in the number of optional properties."""


def nested(depth):
    return Constraint("json_schema", '{"items":' * depth + "true" + "}" * depth)


@pytest.fixture(scope="module")
def sandbox(vocabulary):
    made = Sandbox(lambda: vocabulary, deadline_s=1.0)
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
    "not JSON": (Constraint("json_schema", "{"), "EOF"),
    "deep": (nested(5_000), "recursion"),
    "regex": (Constraint("regex", "(a"), "unclosed group"),
    "backreference": (Constraint("regex", r"(a)\1"), "backreferences"),
    "look-around": (Constraint("regex", "(?=a)b"), "look-around"),
    "deep regex": (Constraint("regex", "(" * 500 + "a" + ")" * 500), "nest"),
    "grammar": (Constraint("grammar", "start: nowhere"), "nowhere"),
    "empty grammar": (Constraint("grammar", " \n"), "empty"),
    "no choices": (Constraint("choice", "{}"), "array"),
}


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
    small = Sandbox(lambda: vocabulary, max_bytes=24 << 20, num_processes=1)
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


def test_close_ends_trials_under_way(vocabulary):
    """Red when a server that stops waits for a compilation."""
    closing = Sandbox(lambda: vocabulary, deadline_s=60)
    future = closing.check(schema(json.loads(SLOW.text)))
    while not closing._processes or not closing._processes[0].is_alive:
        time.sleep(0.01)
    time.sleep(0.5)
    began_s = time.monotonic()
    closing.close()
    assert time.monotonic() - began_s < 5
    assert future.done()


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
