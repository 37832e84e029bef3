"""Every way to spoil a question is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.viva import garden
from tests.viva.mutations import MUTATORS, Mutation, spoiled_fetched_citations
from viva.bank.schema import Question


def test_the_unspoiled_question_is_clean() -> None:
    """Red when the verifier finds fault where there is none: then the mutation tests below prove nothing."""
    assert garden.faults(garden.question()) == []


@pytest.mark.parametrize("mutate", MUTATORS, ids=lambda mutate: mutate.__name__)
def test_no_spoiled_question_passes(mutate: Callable[[Question], Iterator[Mutation]]) -> None:
    """Red when a check of the verifier is dropped or weakened: the list has what went through."""
    spoiled = list(mutate(garden.question()))
    assert spoiled
    assert [what for what, question in spoiled if not garden.faults(question)] == []


def test_no_spoiled_citation_of_a_fetched_source_passes() -> None:
    """Red when quotes are compared with their hashes only, and not with the source."""
    spoiled = list(spoiled_fetched_citations(garden.question(), {"garden", "meadow"}))
    assert [what for what, question in spoiled if not garden.faults(question)] == []
