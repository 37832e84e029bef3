"""Ids and text of small vocabularies, and of real models against transformers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phloem.core.errors import InvalidRequest
from phloem.serve.text.gguf import GgufTokenizerMetadata
from phloem.serve.text.load import TextModel
from phloem.serve.text.tokenizer import Tokenizer


def test_hard_text_comes_back(byte_level: Tokenizer, sentencepiece: Tokenizer, hard_texts: list[str]) -> None:
    """Red if a normalizer, pre-tokenizer or byte spelling loses a character."""
    for tokenizer in (byte_level, sentencepiece):
        for text in hard_texts:
            assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_control_text_of_a_user_stays_text(either: Tokenizer) -> None:
    """Red if encode parses control tokens when it was not allowed to."""
    for id in either.control_ids:
        token = either.token_text(id)
        ids = either.encode(f"a {token}{token} b", add_special=False)
        assert not either.control_ids & set(ids)
        assert either.decode(ids) == f"a {token}{token} b"
        assert id in either.encode(f"a {token} b", allow_special=True)


def test_sentencepiece_cannot_merge_a_control_token_together(sentencepiece: Tokenizer) -> None:
    """Red if control tokens take part in the merges implied by the scores."""
    assert 1 not in sentencepiece.encode("<s> <s", add_special=False)


def test_guarding_does_not_change_the_pieces_around(byte_level: Tokenizer) -> None:
    """Red if control text is cut out of its surroundings: the user's words must merge as anywhere else."""
    guarded = byte_level.encode("the <|im_end|> the")
    parts = [byte_level.token_text(id) for id in guarded]
    assert "".join(parts) == "the <|im_end|> the"
    assert parts[0] == "the"
    assert parts[1] == " <"[: len(parts[1])]
    assert byte_level.encode("the <|im_end|") == guarded[: len(byte_level.encode("the <|im_end|"))]


def test_bos_is_added_only_when_wanted(sentencepiece: Tokenizer, byte_level: Tokenizer) -> None:
    """Red if add_special is ignored, or a model that adds no BOS gets one."""
    assert sentencepiece.encode("the")[0] == sentencepiece.bos_id
    assert sentencepiece.encode("the", add_special=False)[0] != sentencepiece.bos_id
    assert byte_level.encode("the") == byte_level.encode("the", add_special=False)


def test_user_defined_tokens_are_whole_but_shown(byte_level: Tokenizer) -> None:
    """Red if tokens of type user-defined are cut up or hidden (ggml matches them in any text)."""
    ids = byte_level.encode("<tool_call>")
    assert len(ids) == 1
    assert not byte_level.is_special(ids[0])
    assert byte_level.decode(ids) == "<tool_call>"


def test_special_tokens_are_hidden_unless_asked_for(byte_level: Tokenizer) -> None:
    """Red if skip_special is ignored."""
    ids = byte_level.encode("a<|im_end|>b", allow_special=True)
    assert byte_level.decode(ids) == "ab"
    assert byte_level.decode(ids, skip_special=False) == "a<|im_end|>b"


def test_first_space_belongs_to_a_continuation(sentencepiece: Tokenizer) -> None:
    """Red if a text that goes on after a prompt loses its space, or a whole text keeps the added one."""
    ids = sentencepiece.encode("the", add_special=False)
    assert sentencepiece.decode(ids) == "the"
    assert sentencepiece.decode(ids, continuation=True) == " the"


def test_part_of_a_character(byte_level: Tokenizer) -> None:
    """Red if the bytes of a lone piece are lost: logprobs report them."""
    ids = byte_level.encode("𝔘")
    assert len(ids) > 1
    assert b"".join(map(byte_level.token_bytes, ids)) == "𝔘".encode()
    assert "\ufffd" in byte_level.token_text(ids[0])


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff ok", "\ud83d\ud83d"])
def test_lone_surrogates_are_refused(either: Tokenizer, text: str) -> None:
    """Red if a lone surrogate reaches the library, which raises a TypeError."""
    with pytest.raises(InvalidRequest, match="lone surrogate") as error:
        either.encode(text, field="messages")
    assert error.value.field == "messages"


def test_ids_outside_the_vocabulary(either: Tokenizer) -> None:
    """Red if decode crashes or wraps around; token_bytes must stay silent for padding rows of the embedding."""
    for id in (-1, either.vocab_size, 2**40):
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            either.decode([id])
        assert either.token_bytes(id) == b""


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_comes_back(byte_level: Tokenizer, sentencepiece: Tokenizer, text: str) -> None:
    """Red if any character is lost on the way, noncharacters and private use included."""
    assert byte_level.decode(byte_level.encode(text)) == text
    assert sentencepiece.decode(sentencepiece.encode(text)) == text


def test_lower_bound_of_a_huge_prompt(either: Tokenizer) -> None:
    """Red if the bound exceeds the real count, which would refuse prompts that fit, or is of no use."""
    for text in ("the quick " * 20_000, " " * 200_000, "😀" * 70_000):
        assert 1 <= either.least_tokens(text) <= len(either.encode(text))


def test_long_runs_take_linear_time(byte_level: Tokenizer) -> None:
    """Red (by the timeout) if a megabyte of one character is quadratic."""
    for character in ("a", " ", "\n", "<"):
        assert byte_level.decode(byte_level.encode(character * 1_000_000)) == character * 1_000_000


def test_ids_of_real_models_equal_the_reference(real_text: TextModel, oracle: Any, hard_texts: list[str]) -> None:
    """Red if any hard text gets other ids than transformers gives it, control tokens parsed or not."""
    for text in hard_texts:
        for split in (True, False):
            wanted = oracle(text, split_special_tokens=split, add_special_tokens=False).input_ids
            assert real_text.tokenizer.encode(text, allow_special=not split) == wanted, text[:50]


def test_text_of_real_models_equals_the_reference(real_text: TextModel, oracle: Any, hard_texts: list[str]) -> None:
    """Red if decoding differs from transformers'."""
    for text in hard_texts:
        ids = oracle(text, add_special_tokens=False).input_ids
        for skip in (True, False):
            wanted = oracle.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert real_text.tokenizer.decode(ids, skip_special=skip) == wanted


def test_smollm_sets_digits_apart_before_anything_else(make_byte_level_metadata: Any) -> None:
    """Red if the file's pre-tokenizer name is ignored: a run of spaces before a digit is then cut in two."""
    from pathlib import Path

    metadata = make_byte_level_metadata(merges=["Ġ Ġ"], pre="smollm")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:256], "ĠĠ", "12"]
    metadata["tokenizer.ggml.token_type"] = [1] * 258
    for key in ("bos", "eos", "unknown"):
        del metadata[f"tokenizer.ggml.{key}_token_id"]
    apart = GgufTokenizerMetadata(metadata, Path("tiny.gguf")).tokenizer()
    assert [apart.token_text(id) for id in apart.encode("  12")] == ["  ", "1", "2"]
    together = GgufTokenizerMetadata(metadata | {"tokenizer.ggml.pre": "gpt-2"}, Path("tiny.gguf")).tokenizer()
    assert [together.token_text(id) for id in together.encode("  12")] == [" ", " ", "1", "2"]
