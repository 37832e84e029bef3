"""The guard hides control tokens and is undone without a trace."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phloem.serve.text.guard import MARK, ControlGuard, escape, reveal

TOKENS = ["<|im_end|>", "<s>", "im_end|>x", "<|im_end|>x"]
guard = ControlGuard(TOKENS)
texts = st.lists(st.sampled_from([*TOKENS, "<", "|", "s>", "im_end|>", *MARK, MARK, "a"]), max_size=12).map("".join)


def test_text_without_control_tokens_is_the_same_object() -> None:
    """Red if ordinary prompts are copied or changed."""
    text = "an ordinary < text | with > signs"
    assert guard.protect(text) is text


@given(texts)
def test_no_control_token_is_left_and_deleting_the_marks_gives_the_text_back(text: str) -> None:
    """Red if overlapping tokens are forgotten, or marks written by a user are not escaped."""
    protected = guard.protect(text)
    assert not any(token in protected for token in TOKENS)
    assert reveal(protected) == text


@given(texts)
def test_escape_keeps_control_tokens_and_the_users_marks(text: str) -> None:
    """Red if trusted text loses marks that it holds itself."""
    assert reveal(escape(text)) == text


def test_keys_and_nested_strings_are_protected() -> None:
    """Red if protect_all forgets a kind of JSON value."""
    value = {"<s>": ["<s>", {"a": "<s>"}], "n": 1, "none": None}
    protected = guard.protect_all(value)
    assert "<s>" not in json.dumps(protected, ensure_ascii=False)
    assert json.loads(reveal(json.dumps(protected, ensure_ascii=False))) == value


@pytest.mark.parametrize("tokens", [[], ["x"]])
def test_nothing_to_hide(tokens: list[str]) -> None:
    """Red if an empty set, or a token of one character, breaks the pattern."""
    assert ControlGuard(tokens).protect("x <s>") == "x <s>"
