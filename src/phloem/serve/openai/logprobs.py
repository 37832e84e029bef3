"""Log-probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from phloem.core.request import TokenLogprob
from phloem.serve.openai.responses import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob

LOWEST = -9999.0
"""Written for minus infinity, which JSON does not have; the field's value."""

TokenBytes = Callable[[int], bytes]


def token_label(token: bytes) -> str:
    """A token's text; "bytes:\\xe2\\x82" where it is not whole characters, so that labels stay distinct keys."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def chat_logprobs(entries: Sequence[TokenLogprob], *, top: int, token_bytes: TokenBytes) -> ChatLogprobs:
    """One entry a token, with its `top` most likely alternatives."""

    def alternative(token_id: int, logprob: float) -> TopLogprob:
        raw = token_bytes(token_id)
        return TopLogprob(token=raw.decode(errors="replace"), logprob=max(logprob, LOWEST), bytes=list(raw))

    content = []
    for entry in entries:
        chosen = alternative(entry.token_id, entry.logprob)
        others = [alternative(*pair) for pair in entry.top[:top]]
        content.append(ChatLogprob(chosen.token, chosen.logprob, chosen.bytes, others))
    return ChatLogprobs(content)


class CompletionLogprobsWriter:
    """Writes one choice's log-probabilities piece by piece, counting where in its text each token begins."""

    def __init__(self, *, top: int, token_bytes: TokenBytes) -> None:
        self._top = top
        self._token_bytes = token_bytes
        self._num_chars = 0

    def write(self, entries: Sequence[TokenLogprob], *, first_token: int | None = None) -> CompletionLogprobs:
        """The next piece. `first_token` is the prompt's first token, which has no log-probability."""
        piece = CompletionLogprobs([], [], [], [])
        if first_token is not None:
            self._append(piece, first_token, None, None)
        for entry in entries:
            pairs = entry.top[: self._top] + ((entry.token_id, entry.logprob),)
            best = {token_label(self._token_bytes(token)): max(value, LOWEST) for token, value in pairs}
            self._append(piece, entry.token_id, max(entry.logprob, LOWEST), best)
        return piece

    def _append(
        self, piece: CompletionLogprobs, token_id: int, logprob: float | None, best: dict[str, float] | None
    ) -> None:
        raw = self._token_bytes(token_id)
        piece.text_offset.append(self._num_chars)
        piece.tokens.append(token_label(raw))
        piece.token_logprobs.append(logprob)
        piece.top_logprobs.append(best)
        self._num_chars += sum(byte & 0xC0 != 0x80 for byte in raw)  # a character counts where its first byte is


def joined(pieces: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """Pieces of one choice, in order, as one."""
    whole = CompletionLogprobs([], [], [], [])
    for piece in pieces:
        whole.text_offset.extend(piece.text_offset)
        whole.token_logprobs.extend(piece.token_logprobs)
        whole.tokens.extend(piece.tokens)
        whole.top_logprobs.extend(piece.top_logprobs)
    return whole
