"""Stop strings against the obvious search."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phloem.core.errors import InvalidRequest
from phloem.serve.text.stop import MAX_CHARACTERS, MAX_STRINGS, StopStrings

short = st.text("ab", min_size=1, max_size=4)


def first_match(stops: list[str], text: str) -> tuple[str, int] | None:
    """The stop string that ends first, the longest of those, with its end."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return max(ending, key=len), end
    return None


@given(st.lists(short, min_size=1, max_size=5), st.text("abc", max_size=20))
def test_finds_what_the_obvious_search_finds(stops: list[str], text: str) -> None:
    """Red if a failure link or an inherited match is wrong."""
    scan = StopStrings(stops).scan(0, text)
    assert (None if scan.found is None else (scan.found, scan.end)) == first_match(stops, text)


@given(st.lists(short, min_size=1, max_size=5), st.text("abc", max_size=20))
def test_holds_back_exactly_the_longest_beginning(stops: list[str], text: str) -> None:
    """Red if more is held back than must be, or less."""
    automaton = StopStrings(stops)
    scan = automaton.scan(0, text)
    if scan.found is None:
        ends = [text[len(text) - size :] for size in range(len(text) + 1)]
        assert automaton.depths[scan.state] == max(
            len(end) for end in ends if any(stop.startswith(end) for stop in stops)
        )


@pytest.mark.parametrize(
    "stops", [[""], ["a", ""], ["x"] * (MAX_STRINGS + 1), ["x" * (MAX_CHARACTERS + 1)], ["ab" * 500_000]]
)
def test_bad_lists_are_refused_at_once(stops: list[str]) -> None:
    """Red if a megabyte of stop strings is accepted, or an empty one, which would match everywhere."""
    with pytest.raises(InvalidRequest) as error:
        StopStrings(stops)
    assert error.value.field == "stop"


def test_the_largest_set_does_not_slow_a_token_down() -> None:
    """Red if a token costs more with many long stop strings (here 16,384 characters) than a few microseconds more."""
    stops = StopStrings([("a" * 255) + chr(0x100 + index) for index in range(MAX_STRINGS)])
    state, began = 0, time.perf_counter()
    for _ in range(20_000):
        state = stops.scan(state, "aaaa").state
    assert time.perf_counter() - began < 2.0
    assert stops.depths[state] == 255


def test_no_stop_strings_are_falsy() -> None:
    """Red if streams without stop strings pay for the search."""
    assert not StopStrings()
    assert StopStrings(["x"])
