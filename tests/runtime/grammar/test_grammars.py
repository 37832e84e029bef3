"""The cache of compiled grammars."""

from __future__ import annotations

import time

import pytest
from tests.runtime.grammar.conftest import schema
from tests.runtime.grammar.test_matcher import spell

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint
from phloem.runtime.grammar.grammars import BYTES_PER_CHAR, BYTES_PER_GRAMMAR, Grammars, no_vocabulary


def test_the_cache_is_bounded_by_bytes_and_forgets_the_oldest(vocabulary):
    """Red when compiled grammars pile up, or the one just used goes first."""
    room = 3 * (BYTES_PER_GRAMMAR + BYTES_PER_CHAR)
    grammars = Grammars(lambda: vocabulary, max_bytes=room)
    letters = [Constraint("regex", letter) for letter in "abc"]
    for letter in letters:
        grammars.compile(letter)
    grammars.matcher(letters[0]).mask()
    grammars.compile(Constraint("regex", "d"))
    assert grammars.has(letters[0])
    assert not grammars.has(letters[1])
    assert grammars.num_bytes == room
    assert len(grammars.matcher(letters[1]).force(9)) == 2  # compiled again
    huge = Constraint("regex", "a" * 20_000)
    grammars.compile(huge)
    assert grammars.has(huge), "what is in use stays, however large"
    assert grammars.num_bytes == BYTES_PER_GRAMMAR + BYTES_PER_CHAR * 20_000


def test_matchers_of_one_grammar_are_independent(vocabulary):
    """Red when two choices of a request share their place in the grammar."""
    grammars = Grammars(lambda: vocabulary)
    first, second = (grammars.matcher(Constraint("regex", "ab")) for _ in range(2))
    first.force(9)
    assert first.is_finished
    assert not second.is_finished


def test_the_vocabulary_is_read_when_it_is_needed(vocabulary):
    """Red when every engine reads a tokenizer, or reads it for each constraint."""
    reads = []
    grammars = Grammars(lambda: reads.append(1) or vocabulary)
    assert reads == []
    grammars.compile(Constraint("regex", "a"))
    grammars.compile(Constraint("regex", "b"))
    assert reads == [1]


def test_an_engine_without_a_tokenizer_says_so():
    """Red when a constraint reaches an engine that cannot follow it and is ignored, or kills it."""
    grammars = Grammars(no_vocabulary)
    with pytest.raises(InvalidRequest, match="cannot follow constraints"):
        grammars.compile(Constraint("regex", "a"))
    matcher = grammars.matcher(Constraint("regex", "a"))
    assert matcher.mask().size == 0
    assert "cannot follow constraints" in matcher.fault


def test_a_matcher_compiles_when_it_is_first_asked(vocabulary):
    """Red when the thread that starts a row compiles, or copies, its grammar: a step would wait for it."""
    grammars = Grammars(lambda: vocabulary)
    constraint = Constraint("regex", "ab")
    matcher = grammars.matcher(constraint, spell(grammars, "a"))
    assert not grammars.has(constraint)
    assert matcher.force(9)[0] == spell(grammars, "b")[0]
    assert grammars.has(constraint)


def test_copies_know_what_the_first_mask_took(vocabulary):
    """Red when each request of a large schema computes its slow first mask anew."""
    grammars = Grammars(lambda: vocabulary)
    wide = schema({"type": "object", "properties": {f"p{index}": {"type": "integer"} for index in range(2_000)}})
    grammars.compile(wide)
    cold = grammars._made_compiler().compile(wide)
    began_s = time.perf_counter()
    cold.compute_bitmask()
    cold_s, began_s = time.perf_counter() - began_s, time.perf_counter()
    grammars.matcher(wide).mask()
    assert time.perf_counter() - began_s < cold_s / 2
