"""Tokenizer: text to ids and back, over the `tokenizers` library, with control tokens kept apart from user text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property

import tokenizers
from tokenizers import normalizers

from phloem.core.errors import InvalidRequest, ModelError
from phloem.serve.text.guard import MARK, ControlGuard, escape
from phloem.serve.text.pieces import spelling_of

SHORT_TEXT = 65_536  # characters; not worth bounding
MOST_SHRINKAGE = 4  # characters that a normalizer may fold into one (NFC: a Hangul syllable of three)


class Tokenizer:
    """One model's vocabulary. Nothing changes after construction, so threads may share it.

    `backend` must have its added tokens, pre-tokenizer, decoder and post-processor; the guard's normalizer is put in
    front of its own. `eos_ids` are all ids that end a text; `bos_id` the one that begins it. ModelError for a decoder
    that does not decode token by token.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, bos_id: int | None = None, eos_ids: Iterable[int] = (), source: str = ""
    ) -> None:
        spelling = spelling_of(_decoder_entry(backend))
        if spelling is None:
            raise ModelError(
                f"{source}: the tokenizer is neither byte-level BPE nor SentencePiece; serve a model that has either",
                field=source or None,
            )
        self._piece_bytes, self._strips_first_space = spelling
        added = backend.get_added_tokens_decoder()
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)
        self.control_ids = frozenset(id for id, token in added.items() if token.special)
        self.guard = ControlGuard(added[id].content for id in sorted(self.control_ids))
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._num_ids = max([self.vocab_size, *(id + 1 for id in added)])
        self._shrinkage = 1 if backend.normalizer is None else MOST_SHRINKAGE
        self._backend = _with_guard(backend)
        self._bytes_of: dict[int, bytes] = {}

    def encode(
        self, text: str, *, allow_special: bool = False, add_special: bool = True, field: str | None = "prompt"
    ) -> list[int]:
        """Ids of `text`. Control tokens spelled in it become control tokens only with `allow_special`; `add_special`
        adds what the model wants around a text (usually a BOS). InvalidRequest, naming `field`, for a lone surrogate.
        """
        guarded = escape(text) if allow_special else self.guard.protect(text)
        return self.encode_guarded(guarded, add_special=add_special, field=field)

    def encode_guarded(self, text: str, *, add_special: bool = False, field: str | None = "prompt") -> list[int]:
        """Ids of text whose user-written parts were protected by `guard`; the control tokens left in it are meant."""
        check_encodable(text, field=field)
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. SentencePiece's space before the first word is dropped
        unless the text is a `continuation` of other text. InvalidRequest for an id outside the vocabulary.
        """
        for id in ids:
            if not 0 <= id < self._num_ids:
                raise InvalidRequest(
                    f"token {id} is outside the vocabulary of {self.vocab_size} tokens", field="tokens"
                )
        text = b"".join(self.visible_bytes(ids, skip_special=skip_special)).decode(errors="replace")
        return text.removeprefix(" ") if self._strips_first_space and not continuation else text

    def visible_bytes(
        self, ids: Iterable[int], *, skip_special: bool, shown_ids: frozenset[int] = frozenset()
    ) -> Iterable[bytes]:
        """Bytes of each id that shows in the text; control tokens in `shown_ids` show in any case."""
        hidden = self.control_ids - shown_ids if skip_special else frozenset()
        return (self.token_bytes(id) for id in ids if id not in hidden)

    def token_bytes(self, id: int) -> bytes:
        """Bytes that the token adds to a text; empty for ids without a token (padding rows of the embedding)."""
        known = self._bytes_of.get(id)
        if known is None:
            piece = self._backend.id_to_token(id) if 0 <= id < self._num_ids else None
            known = b"" if piece is None else self._added_bytes(id, piece)
            self._bytes_of[id] = known
        return known

    def token_text(self, id: int) -> str:
        """The token alone, for people and logprobs; part of a character shows as U+FFFD."""
        return self.token_bytes(id).decode(errors="replace")

    def is_special(self, id: int) -> bool:
        """Whether `id` is a control token, which text hides."""
        return id in self.control_ids

    def to_json(self) -> str:
        """The model's tokenizer.json, without the guard: for those who look at generated text, which needs none."""
        entry = json.loads(self._backend.to_str())
        steps = (entry["normalizer"] or {}).get("normalizers", [])[1:]
        entry["normalizer"] = steps[0] if steps else None
        return json.dumps(entry)

    def least_tokens(self, text: str) -> int:
        """A cheap lower bound of the number of tokens in `text`, to refuse a huge prompt before tokenizing it."""
        return 0 if len(text) < SHORT_TEXT else len(text) // (self._longest_piece * self._shrinkage)

    def _added_bytes(self, id: int, piece: str) -> bytes:
        return piece.encode() if id in self.control_ids else self._piece_bytes(piece)

    @cached_property
    def _longest_piece(self) -> int:
        """Characters of the longest piece: in both spellings at least the characters of text it stands for."""
        return max(map(len, self._backend.get_vocab()))


def check_encodable(text: str, *, field: str | None) -> None:
    """InvalidRequest when `text` holds a lone surrogate, which no encoding can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"character {error.start} is a lone surrogate (U+{ord(text[error.start]):04X}); send well-formed Unicode",
            field=field,
        ) from error


def _with_guard(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    unmark = normalizers.Replace(MARK, "")
    backend.normalizer = unmark if backend.normalizer is None else normalizers.Sequence([unmark, backend.normalizer])
    return backend


def _decoder_entry(backend: tokenizers.Tokenizer) -> dict[str, str] | None:
    if backend.decoder is None:
        return None
    entry: dict[str, str] = json.loads(backend.decoder.__getstate__())
    return entry
