"""Detokenizer: the text of one stream, token by token, never half a character and never part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass

from phloem.serve.text.stop import StopStrings
from phloem.serve.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text to send now. `stop` is the stop string that was just found; nothing follows it."""

    text: str = ""
    stop: str | None = None


NOTHING = TextDelta()
NO_STOPS = StopStrings()


class Detokenizer:
    """Turns one stream's token ids into text as they come.

    The deltas' concatenation does not depend on how the ids were split into pushes, and without stop strings equals
    `tokenizer.decode(ids, continuation=True)`. Held back: the bytes of an unfinished character, and the longest end of
    the text that begins a stop string. A stop string cuts the text before itself, or after with `include_stop`; of
    those that match, the one that ends first, then the longest. The first `min_tokens` tokens are not searched.
    `shown_ids` are control tokens that show although `skip_special` hides the others.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stops: StopStrings | None = None,
        skip_special: bool = True,
        shown_ids: frozenset[int] = frozenset(),
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = stops or NO_STOPS
        self._skip_special = skip_special
        self._shown_ids = shown_ids
        self._include_stop = include_stop
        self._unsearched_tokens = min_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._state = 0
        self._held = ""
        self._ended = False

    @property
    def held(self) -> bool:
        """Whether text, or part of a character, is held back."""
        return bool(self._held or self._utf8.getstate()[0])

    def push(self, token_ids: Iterable[int]) -> TextDelta:
        """Text that the next tokens make certain. After a stop string, nothing."""
        if self._ended:
            return NOTHING
        ids = list(token_ids)
        free, searched = ids[: self._unsearched_tokens], ids[self._unsearched_tokens :]
        self._unsearched_tokens -= len(free)
        free_text = self._decode(free)
        delta = self._search(self._decode(searched))
        return TextDelta(free_text + delta.text, delta.stop) if free_text else delta

    def flush(self) -> TextDelta:
        """End the stream: what is still held back; an unfinished character becomes U+FFFD."""
        if self._ended:
            return NOTHING
        delta = self._search(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        self._ended = True
        return delta if delta.stop else TextDelta(delta.text + held)

    def _decode(self, ids: Iterable[int]) -> str:
        visible = self._tokenizer.visible_bytes(ids, skip_special=self._skip_special, shown_ids=self._shown_ids)
        return self._utf8.decode(b"".join(visible))

    def _search(self, text: str) -> TextDelta:
        if not text:
            return NOTHING
        if not self._stops:
            return TextDelta(text)
        scan = self._stops.scan(self._state, text)
        known = self._held + text
        if scan.found is not None:
            return self._stop(scan.found, known[: len(self._held) + scan.end])
        self._state = scan.state
        certain = len(known) - self._stops.depths[scan.state]
        self._held = known[certain:]
        return TextDelta(known[:certain])

    def _stop(self, stop: str, text: str) -> TextDelta:
        self._ended = True
        self._held = ""
        self._utf8.reset()
        return TextDelta(text if self._include_stop else text.removesuffix(stop), stop)
