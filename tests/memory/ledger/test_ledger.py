"""The ledger by case."""

from __future__ import annotations

import pytest

from phloem.memory.ledger.keys import common_tokens, encode_tokens
from phloem.memory.ledger.ledger import NO_MATCH, Ledger

PAGE = 4


def ledger_with(num_pages=16, *, retain=True):
    return Ledger(num_pages=num_pages, page_size=PAGE, retain=retain)


def hold(ledger, tokens, *, namespace="", computed=None, partial=True, hit=None):
    """Open a holding for `tokens`, as far as they are cached, and publish `computed` of them."""
    match = ledger.match(encode_tokens(tokens), namespace=namespace, max_tokens=len(tokens) if hit is None else hit)
    holding, copy = ledger.open(match, namespace=namespace)
    ledger.grow(holding, ledger.pages_for(len(tokens)) - len(holding.pages))
    if copy is not None:
        ledger.settle([copy])
    ledger.publish(holding, tokens, len(tokens) if computed is None else computed, partial=partial)
    ledger.check()
    return holding


def cached(ledger, tokens, *, namespace=""):
    return ledger.match(encode_tokens(tokens), namespace=namespace, max_tokens=len(tokens)).num_tokens


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([256], [1], 0), ([], [1], 0), ([65536, 7], [65537, 7], 0)],
)
def test_common_tokens_counts_tokens_not_bytes(left, right, expected):
    """Red if keys that share some bytes of a token count it as shared."""
    assert common_tokens(encode_tokens(left), encode_tokens(right)) == expected


def test_pages_are_free_leased_then_free_when_nothing_was_published():
    """Red if close keeps pages nobody can find."""
    ledger = ledger_with()
    holding, _ = ledger.open(NO_MATCH, namespace="")
    ledger.grow(holding, 5)
    assert ledger.stats()[1:4] == (11, 5, 0)
    ledger.close(holding)
    assert ledger.stats()[1:4] == (16, 0, 0)


def test_prefix_of_an_unfinished_holding_is_shared_by_reference():
    """Red if pages become findable only at close."""
    ledger = ledger_with()
    first = hold(ledger, list(range(10)), partial=False)
    second = hold(ledger, [*range(8), 90, 91])
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    assert second.num_hit_tokens == 8


def test_match_that_ends_inside_a_page_copies_it():
    """Red if the index only knows whole pages, or hands out a page to be written by two."""
    ledger = ledger_with()
    first = hold(ledger, list(range(10)))
    match = ledger.match(encode_tokens([*range(9), 50]), namespace="", max_tokens=10)
    assert match.num_tokens == 9
    second, copy = ledger.open(match, namespace="")
    assert copy is not None
    assert copy.source == first.pages[2]
    assert copy.target == second.pages[2] not in first.pages
    ledger.check()
    ledger.settle([copy])
    ledger.check()


def test_match_inside_a_full_page_finds_the_child_that_shares_most():
    """Red if the neighbour search looks at one side only."""
    ledger = ledger_with()
    for page in ([5, 5, 1, 1], [5, 5, 5, 1], [5, 5, 5, 9], [5, 6, 0, 0]):
        ledger.close(hold(ledger, page, hit=0))
    assert cached(ledger, [5, 5, 5, 5]) == 3
    assert cached(ledger, [5, 5, 2, 2]) == 2
    assert cached(ledger, [5, 6, 0, 1]) == 3
    assert cached(ledger, [4, 5, 5, 5]) == 0


def test_source_of_a_copy_survives_until_it_is_settled():
    """Red if the copy's source can be evicted, or reused, while the step that reads it is in flight."""
    ledger = ledger_with(4)
    ledger.close(hold(ledger, list(range(6))))
    source_tokens = list(range(6))
    holding, copy = ledger.open(ledger.match(encode_tokens(source_tokens), namespace="", max_tokens=5), namespace="")
    assert copy is not None
    assert ledger.num_available == 1
    (page,) = ledger.grow(holding, 1)
    assert page != copy.source
    ledger.settle([copy])
    assert ledger.num_available == 1
    ledger.check()


def test_partial_page_is_forgone_when_there_is_no_page_to_copy_to():
    """Red if a hit in a full pool is a dead end."""
    ledger = ledger_with(2)
    ledger.close(hold(ledger, list(range(6))))
    holding, copy = ledger.open(ledger.match(encode_tokens(list(range(6))), namespace="", max_tokens=5), namespace="")
    assert copy is None
    assert holding.num_hit_tokens == 4
    ledger.grow(holding, 1)
    ledger.check()


def test_namespaces_never_share():
    """Red if the salt is not part of the path."""
    ledger = ledger_with()
    ledger.close(hold(ledger, list(range(8)), namespace="a"))
    assert cached(ledger, list(range(8)), namespace="b") == 0
    assert cached(ledger, list(range(8)), namespace="a") == 8


def test_two_that_computed_the_same_tokens_leave_one_copy_behind():
    """Red if a duplicate leaks, or if it is freed while its owner reads it."""
    ledger = ledger_with()
    tokens = list(range(8))
    first, second = hold(ledger, tokens, hit=0), hold(ledger, tokens, hit=0)
    assert ledger.stats().num_leased == 4
    ledger.close(first)
    ledger.check()
    assert ledger.stats().num_leased == 4  # the second goes on below the first one's pages
    third = hold(ledger, [*tokens, 1, 2, 3, 4])
    ledger.close(second)
    ledger.close(third)
    ledger.check()
    assert ledger.stats()[1:4] == (13, 0, 3)
    assert cached(ledger, [*tokens, 1, 2, 3, 4]) == 12


def test_a_page_computed_again_takes_the_place_of_an_unleased_one():
    """Red if the older duplicate stays cached (it would be found, and the newer one could never be)."""
    ledger = ledger_with()
    ledger.close(hold(ledger, list(range(8))))
    holding = hold(ledger, list(range(8)), hit=0)
    assert ledger.stats().num_cached == 0
    assert ledger.stats().num_leased == 2
    ledger.close(holding)
    assert ledger.stats().num_cached == 2


def test_least_recently_used_leaf_goes_first():
    """Red if eviction ignores use, or takes an inner page before its children."""
    ledger = ledger_with(6)
    ledger.close(hold(ledger, [1] * 8))
    ledger.close(hold(ledger, [2] * 8))
    ledger.close(hold(ledger, [1] * 8))  # used again
    holding, _ = ledger.open(NO_MATCH, namespace="")
    ledger.grow(holding, 3)  # two were free
    ledger.check()
    assert (cached(ledger, [1] * 8), cached(ledger, [2] * 8)) == (8, 4)
    ledger.grow(holding, 1)
    assert (cached(ledger, [1] * 8), cached(ledger, [2] * 8)) == (8, 0)
    ledger.grow(holding, 2)
    ledger.check()
    assert cached(ledger, [1] * 8) == 0
    assert ledger.stats().num_evicted == 4


def test_leased_pages_are_never_evicted():
    """Red if grow takes from the living."""
    ledger = ledger_with(4)
    hold(ledger, list(range(8)))
    other, _ = ledger.open(NO_MATCH, namespace="")
    assert ledger.num_available == 2
    with pytest.raises(AssertionError, match="num_available"):
        ledger.grow(other, 3)


def test_partial_page_becomes_whole_in_place():
    """Red if the page is in the index twice, or not at all, once it fills."""
    ledger = ledger_with()
    tokens = list(range(8))
    holding = hold(ledger, tokens, computed=6)
    assert cached(ledger, tokens) == 6
    ledger.publish(holding, tokens, 8)
    ledger.check()
    assert cached(ledger, tokens) == 8
    ledger.close(holding)
    assert ledger.stats().num_cached == 2


def test_without_retention_the_living_share_and_nothing_stays():
    """Red if prefix_cache=False either stops siblings from sharing or keeps pages after the last lease."""
    ledger = ledger_with(retain=False)
    first = hold(ledger, list(range(10)))
    second = hold(ledger, list(range(10)), hit=9)
    assert second.num_hit_tokens == 9
    third = hold(ledger, list(range(10)), hit=0)  # twins of the first, released in any order
    for holding in (first, third, second):
        ledger.close(holding)
        ledger.check()
    assert ledger.stats()[1:4] == (16, 0, 0)


def test_empty_namespaces_are_forgotten():
    """Red if salts pile up: one per request without the prefix cache."""
    ledger = ledger_with(retain=False)
    for serial in range(50):
        ledger.close(hold(ledger, [1, 2, 3, 4, 5], namespace=f"request:{serial}"))
    assert ledger._index._roots == {}


def test_check_names_what_is_wrong():
    """Red if check believes its own counters."""
    ledger = ledger_with()
    holding = hold(ledger, list(range(8)))
    ledger._leases[holding.pages[0]] += 1
    with pytest.raises(AssertionError, match=r"page 0 has 2 leases, its holders account for 1"):
        ledger.check()
    ledger._leases[holding.pages[0]] -= 1
    ledger._free.append(holding.pages[1])
    with pytest.raises(AssertionError, match="free page 1 has 1 leases"):
        ledger.check()


def test_releasing_twice_is_caught():
    """Red if a double close goes unnoticed."""
    ledger = ledger_with()
    holding = hold(ledger, list(range(8)))
    ledger.close(holding)
    with pytest.raises(KeyError):
        ledger.close(holding)


def test_long_prompts_are_matched_without_a_walk_over_tokens():
    """Red if matching an 8,192-token prompt touches every token in Python: it would read 8,192 dictionary entries."""
    ledger = Ledger(num_pages=512, page_size=32)
    tokens = list(range(8192))
    holding, _ = ledger.open(NO_MATCH, namespace="")
    ledger.grow(holding, 256)
    ledger.publish(holding, tokens, 8192)
    walk = ledger.match(encode_tokens(tokens), namespace="", max_tokens=8191).walk
    assert len(walk.path) == 255
    assert walk.num_partial == 31
    assert ledger._index.num_nodes == 256
