"""Streams: however the ids are split, the text is that of one decode."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phloem.serve.text.detokenizer import Detokenizer, TextDelta
from phloem.serve.text.load import TextModel
from phloem.serve.text.stop import StopStrings
from phloem.serve.text.tokenizer import Tokenizer

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def stream(tokenizer: Tokenizer, pushes: list[list[int]], **options: Any) -> tuple[str, str | None]:
    """Concatenated text and the stop string, if one was found."""
    detokenizer = Detokenizer(tokenizer, **options)
    deltas = [*(detokenizer.push(push) for push in pushes), detokenizer.flush()]
    assert detokenizer.flush() == TextDelta()
    return "".join(delta.text for delta in deltas), next((delta.stop for delta in deltas if delta.stop), None)


def split(ids: list[int], cuts: list[int]) -> list[list[int]]:
    places = sorted({cut % (len(ids) + 1) for cut in cuts} | {0, len(ids)})
    return [ids[begin:end] for begin, end in zip(places, places[1:], strict=False)]


@relaxed
@given(data=st.data())
def test_any_split_of_any_ids_gives_the_text_of_one_decode(either: Tokenizer, data: st.DataObject) -> None:
    """Red if a delta depends on what came in the same push; the ids are arbitrary, so most are not valid UTF-8."""
    ids = data.draw(st.lists(st.integers(0, either.vocab_size - 1), max_size=40))
    pushes = split(ids, data.draw(st.lists(st.integers(0, 40), max_size=10)))
    for skip in (True, False):
        wanted = either.decode(ids, skip_special=skip, continuation=True)
        assert stream(either, pushes, skip_special=skip) == (wanted, None)


@relaxed
@given(data=st.data())
def test_any_split_is_cut_at_the_same_stop_string(byte_level: Tokenizer, data: st.DataObject) -> None:
    """Red if a stop string is missed, found late, or cut elsewhere when tokens arrive in other groups."""
    text = data.draw(st.text("ab é😀", max_size=30))
    stops = data.draw(st.lists(st.text("ab é😀", min_size=1, max_size=4), min_size=1, max_size=4))
    ids = [id for character in text for id in byte_level.encode(character)]
    found = StopStrings(stops).scan(0, text)
    for include in (False, True):
        wanted = text
        if found.found is not None:
            wanted = text[: found.end] if include else text[: found.end - len(found.found)]
        pushes = split(ids, data.draw(st.lists(st.integers(0, 60), max_size=10)))
        got = stream(byte_level, pushes, stops=StopStrings(stops), include_stop=include)
        assert got == (wanted, found.found)


def test_half_a_character_is_never_sent(byte_level: Tokenizer) -> None:
    """Red if a replacement character is emitted while the rest of the character may still come."""
    detokenizer = Detokenizer(byte_level)
    deltas = [detokenizer.push([id]).text for id in byte_level.encode("𝔘x")]
    assert "\ufffd" not in "".join(deltas)
    assert "".join(deltas) == "𝔘x"
    assert not detokenizer.held


def test_a_character_that_never_ends_is_replaced_at_the_end(byte_level: Tokenizer) -> None:
    """Red if the bytes of an unfinished character are lost without a trace."""
    detokenizer = Detokenizer(byte_level)
    assert detokenizer.push(byte_level.encode("𝔘")[:-1]).text == ""
    assert detokenizer.held
    assert detokenizer.flush().text == "\ufffd"


def test_only_the_possible_beginning_of_a_stop_string_is_held_back(byte_level: Tokenizer) -> None:
    """Red if text is delayed by the length of the longest stop string instead of by what matches."""
    detokenizer = Detokenizer(byte_level, stops=StopStrings(["END of it"]))
    assert detokenizer.push(byte_level.encode("all well, the E")).text == "all well, the "
    assert detokenizer.push(byte_level.encode("a")).text == "Ea"


def test_after_a_stop_string_nothing_comes(byte_level: Tokenizer) -> None:
    """Red if tokens that were under way when the stop string was found reach the caller."""
    detokenizer = Detokenizer(byte_level, stops=StopStrings(["b"]))
    assert detokenizer.push(byte_level.encode("abc")) == TextDelta("a", "b")
    assert detokenizer.push(byte_level.encode("abc")) == TextDelta()
    assert detokenizer.flush() == TextDelta()


def test_min_tokens_are_not_searched(byte_level: Tokenizer) -> None:
    """Red if a stop string inside the first min_tokens tokens ends the stream, in whatever groups they come."""
    ids = [id for character in "abab" for id in byte_level.encode(character)]
    for pushes in ([ids], [[id] for id in ids], [ids[:1], ids[1:]]):
        assert stream(byte_level, pushes, stops=StopStrings(["b"]), min_tokens=2) == ("aba", "b")


def test_sentencepiece_keeps_the_space_after_the_prompt(sentencepiece: Tokenizer) -> None:
    """Red if the first word of an answer is glued to the prompt."""
    ids = sentencepiece.encode("the the", add_special=False)
    assert stream(sentencepiece, [[id] for id in ids]) == (" the the", None)


def test_real_vocabularies_stream_hard_text(real_text: TextModel, hard_texts: list[str]) -> None:
    """Red if a real vocabulary streams other text than it decodes."""
    tokenizer = real_text.tokenizer
    for text in hard_texts:
        ids = tokenizer.encode(text)
        assert stream(tokenizer, [[id] for id in ids]) == (text, None)


@pytest.mark.parametrize("pushes", [[], [[]], [[], []]])
def test_empty_streams(byte_level: Tokenizer, pushes: list[list[int]]) -> None:
    """Red if a stream without tokens raises or says something."""
    assert stream(byte_level, pushes, stops=StopStrings(["x"])) == ("", None)
