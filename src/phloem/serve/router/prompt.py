"""From a request's body to what its prompt is called. Only a hint: whatever cannot be read is routed by load, and the
replica says what is wrong with it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np

from phloem.core.errors import PhloemError
from phloem.parallel.replicas import Prompt
from phloem.serve.text.load import TextModel

LARGE_TEXT_BYTES = 8192
"""A longer body is tokenized in a thread: it would hold up every stream that passes through."""
BYTES_PER_TOKEN_OF_TEXT = 4
DEFAULT_MAX_TOKENS = 256
MAX_DECODE_TOKENS = 1024
"""Few answers are as long as they may be."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class PromptReader:
    """With the model's tokenizer, prompts are named by their tokens as the replicas' caches are. Without, by blocks of
    text: then each replica's cache is guessed from what was sent to it."""

    def __init__(self, text: TextModel | None) -> None:
        self._text = text

    async def read(self, path: str, body: bytes) -> Prompt:
        """The prompt of a POST to `path`."""
        if len(body) > LARGE_TEXT_BYTES:
            return await asyncio.to_thread(self._read, path, body)
        return self._read(path, body)

    def _read(self, path: str, body: bytes) -> Prompt:
        try:
            fields = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Prompt()
        salt, limit = fields.get("cache_salt"), fields.get("max_completion_tokens") or fields.get("max_tokens")
        known: dict[str, Any] = {
            "namespace": salt if isinstance(salt, str) else "",
            "max_tokens": min(limit if isinstance(limit, int) and limit > 0 else DEFAULT_MAX_TOKENS, MAX_DECODE_TOKENS),
        }
        prompt = fields.get("prompt") if path == "/v1/completions" else fields.get("messages")
        try:
            key = self._tokens(path, prompt, fields)
        except (PhloemError, TypeError, ValueError, OverflowError, KeyError):
            return Prompt(**known)
        if key is not None:
            return Prompt(np.asarray(key, dtype=">u4").tobytes(), **known)
        raw = prompt.encode("utf-8", "replace") if isinstance(prompt, str) else msgspec.json.encode(prompt)
        return Prompt(raw, unit_bytes=BYTES_PER_TOKEN_OF_TEXT, **known)

    def _tokens(self, path: str, prompt: Any, fields: dict[str, Any]) -> list[int] | None:
        """None: there is no tokenizer to ask."""
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return prompt
        if self._text is None:
            return None
        if path == "/v1/chat/completions":
            return self._text.chat.encode(
                prompt,
                tools=fields.get("tools"),
                arguments_as_text=True,
                add_generation_prompt=fields.get("add_generation_prompt"),
                continue_final_message=bool(fields.get("continue_final_message")),
                kwargs=fields.get("chat_template_kwargs"),
            )
        if isinstance(prompt, list) and prompt:  # several prompts go to one replica: the first decides
            return self._tokens(path, prompt[0], fields)
        return self._text.tokenizer.encode(
            prompt,
            allow_special=fields.get("allow_special_tokens") is True,
            add_special=fields.get("add_special_tokens") is not False,
        )
