"""Constraints through the whole loop on a null worker that reads every context back: forced tokens under pressure."""

from __future__ import annotations

import itertools
import json

import pytest
from tests.engine.conftest import Engine

from phloem.core.request import Constraint
from phloem.launch.text import BYTE_VOCAB_SIZE, END_ID, tokenizer_json_of
from phloem.runtime.grammar.gate import GrammarGate
from phloem.runtime.grammar.grammars import Grammars
from phloem.runtime.grammar.vocabulary import Vocabulary
from phloem.runtime.null import hash_chooser

SCHEMA = Constraint(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {
                "identifier": {"type": "string", "pattern": "^[a-z]{1,6}$"},
                "is_available": {"type": "boolean"},
                "colours": {"type": "array", "items": {"enum": ["crimson", "cerulean"]}, "minItems": 1, "maxItems": 2},
            },
            "required": ["identifier", "is_available", "colours"],
            "additionalProperties": False,
        }
    ),
)
PROMPT = range(1, 12)


@pytest.fixture(scope="module")
def grammars():
    return Grammars(lambda: Vocabulary(tokenizer_json_of("dummy:null"), BYTE_VOCAB_SIZE, (END_ID,)))


@pytest.fixture
def start(grammars):
    """make(depth=..., **settings) -> an engine whose worker and inbox know grammars."""

    def make(**options):
        engine = Engine(choose=hash_chooser(vocab_size=94, avoid=(END_ID,)), **{"eos_token_ids": (END_ID,), **options})
        engine.null._grammars = grammars
        engine.loop._inbox = GrammarGate(inbox=engine.inbox, outbox=engine.outbox, grammars=grammars)
        grammars.compile(SCHEMA)
        return engine

    return make


def text_of(tokens):
    """The null model's ids are the printable ASCII characters; the space is among the others."""
    printable = [*range(ord("!"), ord("~") + 1)]
    letters = {index: chr(code) for index, code in enumerate(printable)}
    return "".join(letters.get(token, " ") for token in tokens)


def alone(start, **sampling):
    """What a request generates by itself, one token a step: logprobs keep forced tokens off."""
    engine = start()
    engine.submit("it", PROMPT, constraint=SCHEMA, logprobs=0, **sampling)
    engine.run()
    return engine.tokens("it")


@pytest.mark.parametrize("depth", [0, 1])
def test_forced_tokens_change_steps_not_tokens(start, depth):
    """Red when forced tokens are lost, repeated or computed wrongly, or when they save no steps."""
    expected = alone(start, seed=7, max_tokens=200)
    json.loads(text_of(expected[:-1]))
    engine = start(depth=depth)
    engine.submit("it", PROMPT, constraint=SCHEMA, seed=7, max_tokens=200)
    engine.run()
    assert engine.tokens("it") == expected
    assert engine.finish("it") == "stop"
    assert engine.seen["it"].stop_token[0] == END_ID
    num_steps = sum(bool(plan.rows) for plan in engine.worker.plans)
    assert num_steps < 0.5 * len(expected)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 17, 18, 19, 20, 40])
def test_forced_tokens_end_where_the_request_does(start, depth, max_tokens):
    """Red when a request gets more tokens than it asked for because they came several at once."""
    expected = alone(start, seed=7, max_tokens=200)[:max_tokens]
    engine = start(depth=depth)
    engine.submit("it", PROMPT, constraint=SCHEMA, seed=7, max_tokens=max_tokens)
    engine.run()
    assert engine.tokens("it") == expected
    assert engine.finish("it") == "length"
    assert engine.terminal("it").num_generated_tokens == max_tokens


def test_a_stop_token_among_forced_ones_ends_the_text(start):
    """Red when tokens after a stop token are reported because they came in one result."""
    expected = alone(start, seed=7, max_tokens=200)
    colon = text_of(range(94)).index(":")
    engine = start()
    engine.submit("it", PROMPT, constraint=SCHEMA, seed=7, max_tokens=200, stop_token_ids=(colon,))
    engine.run()
    assert engine.tokens("it") == expected[: expected.index(colon) + 1]
    assert engine.seen["it"].stop_token[0] == colon


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"num_pages": 28}, {"max_step_tokens": 6}, {"num_pages": 28, "max_rows": 3}])
def test_many_with_and_without_constraints(start, depth, settings):
    """Red when chunks, preemption, several choices or overlap change what a constrained row generates, or the other
    way round: rows with one and without are in the same steps."""
    lone = {seed: alone(start, seed=seed, max_tokens=90) for seed in range(4)}
    plain = start()
    for seed in range(4):
        plain.submit(f"plain-{seed}", range(20, 33), seed=seed, max_tokens=30)
    plain.run()
    engine = start(depth=depth, **settings)
    for seed in range(4):
        engine.submit(f"it-{seed}", PROMPT, constraint=SCHEMA, seed=seed, max_tokens=90)
        engine.submit(f"plain-{seed}", range(20, 33), seed=seed, max_tokens=30)
    engine.submit("both", PROMPT, constraint=SCHEMA, seed=3, n=2, max_tokens=90)
    engine.run(max_turns=5_000)
    for seed in range(4):
        assert engine.tokens(f"it-{seed}") == lone[seed]
        assert engine.tokens(f"plain-{seed}") == plain.tokens(f"plain-{seed}")
    assert engine.tokens("both", 0) != engine.tokens("both", 1)
    for choice in range(2):
        json.loads(text_of(engine.tokens("both", choice)[:-1]))
    if settings.get("num_pages", 64) < 64:
        assert engine.scheduler.stats(0.0).num_preemptions > 0, "the pool is too large for what this test is about"


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"num_pages": 28}, {"max_step_tokens": 6}])
def test_late_masks_change_steps_not_tokens(start, depth, settings):
    """Red when a row whose mask was late loses or repeats a token, a prompt log-probability, or a page of its context;
    or when a row without a constraint is changed by it."""
    lone = {seed: alone(start, seed=seed, max_tokens=90) for seed in range(3)}
    engine, asked = start(depth=depth, **settings), itertools.count()
    engine.null._is_late = lambda row: next(asked) % 3 != 2
    for seed in range(3):
        engine.submit(f"it-{seed}", PROMPT, constraint=SCHEMA, seed=seed, max_tokens=90, prompt_logprobs=0)
    engine.submit("two", PROMPT, constraint=SCHEMA, seed=1, n=2, max_tokens=90)
    engine.submit("plain", range(20, 33), seed=1, max_tokens=30)
    engine.run(max_turns=9_000)
    for seed in range(3):
        assert engine.tokens(f"it-{seed}") == lone[seed]
        assert engine.seen[f"it-{seed}"].prompt_logprobs == list(PROMPT)[1:]
    assert next(asked) > 100, "hardly a mask was late"
    quiet = start(depth=depth, **settings)
    quiet.submit("plain", range(20, 33), seed=1, max_tokens=30)
    quiet.run()
    assert engine.tokens("plain") == quiet.tokens("plain")


@pytest.mark.parametrize("depth", [0, 1])
def test_plain_rows_still_overlap(start, depth):
    """Red when one constrained row makes the others wait for results: at depth 1 the plain row is planned ahead."""
    engine = start(depth=depth)
    engine.submit("it", PROMPT, constraint=SCHEMA, seed=1, max_tokens=60)
    engine.submit("plain", range(20, 33), seed=1, max_tokens=60)
    engine.run()
    in_both = sum(len(plan.rows) == 2 for plan in engine.worker.plans)
    plain_alone = sum(len(plan.rows) == 1 for plan in engine.worker.plans)
    assert in_both > 5
    assert plain_alone > (5 if depth else 0)
    assert len(engine.tokens("plain")) == 60


def test_aborts_while_a_mask_is_late(start):
    """Red when a row that waits for its mask keeps a page or a row once its request has gone, or stands in the way of
    others."""
    for turns in range(1, 8):
        engine = start(depth=1)
        engine.null._is_late = lambda row: True
        engine.submit("it", PROMPT, constraint=SCHEMA, seed=1, n=2, max_tokens=60)
        engine.submit("plain", range(20, 33), seed=1, max_tokens=12)
        engine.turn(turns)
        engine.abort("it")
        engine.run(max_turns=300)
        assert engine.tokens("it") == []
        assert len(engine.tokens("plain")) == 12


def test_aborts_in_every_state(start):
    """Red when a constrained request that goes away keeps a page, a row, or its place at the gate."""
    for turns in range(8):
        engine = start(depth=1)
        engine.submit("it", PROMPT, constraint=SCHEMA, seed=1, max_tokens=60)
        engine.submit("new", PROMPT, constraint=Constraint("regex", f"never{turns}seen[ab]+"), seed=1, max_tokens=60)
        engine.turn(turns)
        engine.abort("it")
        engine.abort("new")
        for _ in range(200):
            engine.turn()
            if all(seen.terminal is not None for seen in engine.seen.values()):
                break
        engine.run()
