"""What grammars must know of a model."""

from __future__ import annotations

import msgspec


class Vocabulary(msgspec.Struct, frozen=True):
    """The tokenizer (a tokenizer.json), the width of its logits and the tokens
    that end a text."""

    tokenizer_json: str
    vocab_size: int
    end_ids: tuple[int, ...]
