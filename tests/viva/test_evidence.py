"""Facts mined from the fixture."""

from __future__ import annotations

import pytest

from tests.viva import garden
from viva.evidence.fact import citations
from viva.evidence.mine import TOPICS, mine
from viva.verify.quotes import check_citation


@pytest.mark.parametrize(
    ("topic", "title", "place"),
    [
        ("chain", "Gardener.run reaches", "garden/engine.py"),
        ("invariant", "Gardener.water asserts len(batch) <= MAX_PLANTS", "garden/engine.py:54-54"),
        ("constant", "MAX_PLANTS = 4 * 16", "garden/engine.py:11-11"),
        ("failure", "Gardener.water on OverflowError: self.shed.give_back, RuntimeError", "garden/engine.py:58-60"),
        ("option", "environment GARDEN_PATIENCE (default '3')", "garden/engine.py:12-12"),
        ("structure", "Gardener: 6 fields, 4 typed", "garden/engine.py"),
    ],
)  # fmt: skip
def test_each_topic_finds_what_is_there(topic: str, title: str, place: str) -> None:
    """Red when a miner misses the fixture's fact of its topic."""
    facts = mine(garden.resolvers()["garden"], topic)
    found = [fact for fact in facts if title in fact.title]
    assert found, [fact.title for fact in facts]
    assert str(found[0].spans[0]).startswith(place)


def test_owners_of_a_field_are_named() -> None:
    """Red when a structure's writers are not told."""
    fact = mine(garden.resolvers()["garden"], "structure", about="Gardener")[0]
    assert any("written garden/engine.py:50 Gardener.next_batch" in line for line in fact.detail)


def test_within_and_about_limit_what_is_looked_at() -> None:
    """Red when a limit is ignored."""
    resolver = garden.resolvers()["garden"]
    assert mine(resolver, "failure", within=["garden/policy.py"])[0].symbol == "make_policy"
    assert mine(resolver, "constant", about="nothing") == []


def test_facts_become_citations_that_verify() -> None:
    """Red when a pack's citations would fail verification."""
    resolver = garden.resolvers()["garden"]
    facts = [fact for topic in TOPICS for fact in mine(resolver, topic)]
    made = citations(facts, resolver.store, source="garden")
    assert len({citation.id for citation in made}) == len(made) > 5
    assert [trouble for item in made if (trouble := check_citation(item, resolver))] == []
