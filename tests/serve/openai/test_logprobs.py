"""Log-probabilities in both shapes."""

from __future__ import annotations

import msgspec

from phloem.core.request import TokenLogprob
from phloem.serve.openai.logprobs import LOWEST, CompletionLogprobsWriter, chat_logprobs, joined, token_label

PIECES = {0: b"a", 1: " né".encode(), 2: b"\xe2\x82", 3: b"\xac", 4: b"\xe2\x82\xac!"}
INFINITE = float("-inf")


def test_broken_characters_keep_distinct_labels():
    """Red when two tokens that are parts of characters become one dictionary key."""
    assert [token_label(PIECES[i]) for i in (1, 2, 3)] == [" né", "bytes:\\xe2\\x82", "bytes:\\xac"]


def test_offsets_count_characters_over_pieces():
    """Red when offsets restart in a chunk, or count bytes."""
    writer = CompletionLogprobsWriter(top=0, token_bytes=PIECES.__getitem__)
    entries = [TokenLogprob(token, -1.0, 1) for token in (1, 2, 3, 4)]
    whole = joined([writer.write(entries[:2], first_token=0), writer.write(entries[2:])])
    assert whole.text_offset == [0, 1, 4, 5, 5]
    assert whole.tokens[:2] == ["a", " né"]
    assert whole.token_logprobs == [None, -1.0, -1.0, -1.0, -1.0]
    assert whole.top_logprobs[0] is None


def test_top_has_the_asked_number_and_the_chosen_token():
    """Red when the chosen token is missing from its alternatives, or more are written than were asked for."""
    entry = TokenLogprob(1, -3.0, 3, ((0, -0.5), (4, -0.7), (3, -0.9)))
    writer = CompletionLogprobsWriter(top=2, token_bytes=PIECES.__getitem__)
    assert writer.write([entry]).top_logprobs == [{"a": -0.5, "€!": -0.7, " né": -3.0}]
    [chosen] = chat_logprobs([entry], top=2, token_bytes=PIECES.__getitem__).content
    assert (chosen.token, chosen.logprob, chosen.bytes) == (" né", -3.0, list(PIECES[1]))
    assert [other.token for other in chosen.top_logprobs] == ["a", "€!"]


def test_minus_infinity_is_a_number_in_json():
    """Red when a token of probability zero writes null, which clients refuse."""
    entry = TokenLogprob(0, INFINITE, 9, ((0, INFINITE),))
    written = chat_logprobs([entry], top=1, token_bytes=PIECES.__getitem__)
    decoded = msgspec.json.decode(msgspec.json.encode(written))["content"][0]
    assert decoded["logprob"] == decoded["top_logprobs"][0]["logprob"] == LOWEST
    pieces = CompletionLogprobsWriter(top=1, token_bytes=PIECES.__getitem__).write([entry])
    assert pieces.token_logprobs == [LOWEST]
