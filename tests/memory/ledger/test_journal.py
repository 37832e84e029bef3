"""Who follows the journal has, at every moment, the names of the whole pages in the index."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from phloem.core.digest import chain
from phloem.memory.ledger.keys import encode_tokens
from phloem.memory.ledger.ledger import Ledger

PAGE = 4


def run_sequence(ledger: Ledger, tokens: list[int], namespace: str = "") -> None:
    match = ledger.match(encode_tokens(tokens), namespace=namespace, max_tokens=len(tokens) - 1)
    holding, copy = ledger.open(match, namespace=namespace)
    ledger.settle(() if copy is None else (copy,))
    ledger.grow(holding, ledger.pages_for(len(tokens)) - len(holding.pages))
    ledger.publish(holding, tokens, len(tokens), partial=True)
    ledger.close(holding)


def whole_pages(ledger: Ledger) -> set[int]:
    fresh = Ledger(num_pages=1, page_size=PAGE)
    fresh._index = ledger._index
    fresh.follow()
    return set(fresh.take_changes()[0])


prompts = st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=2, max_size=20), st.sampled_from("ab")), max_size=30)


@settings(deadline=None, max_examples=60)
@given(prompts)
def test_changes_add_up_to_the_index(requests: list[tuple[list[int], str]]) -> None:
    """Red when an insertion or an eviction is missing from the journal, or reported twice."""
    ledger, copy = Ledger(num_pages=8, page_size=PAGE), set[int]()
    ledger.follow()
    for tokens, namespace in requests:
        run_sequence(ledger, tokens, namespace)
        inserted, evicted = ledger.take_changes()
        assert not copy & set(inserted)
        assert set(evicted) <= copy
        copy = (copy | set(inserted)) - set(evicted)
        now, journal = whole_pages(ledger), ledger._journal
        ledger._index.follow(journal)
        assert copy == now


def test_a_prompt_finds_its_own_pages_by_name_and_nobody_elses() -> None:
    """Red when the router's names and the ledger's differ, or the namespace is not in them."""
    ledger = Ledger(num_pages=8, page_size=PAGE)
    run_sequence(ledger, list(range(11)), "a")
    ledger.follow()
    inserted, _ = ledger.take_changes()
    key = encode_tokens(range(11))
    assert inserted == tuple(chain(key, bytes_per_page=4 * PAGE, namespace="a"))
    assert len(inserted) == 2
    assert not set(inserted) & set(chain(key, bytes_per_page=4 * PAGE, namespace="b"))
