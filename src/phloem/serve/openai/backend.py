"""What every endpoint works with: the engine, the model's text side, and the engine's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from phloem.core.errors import ContextLengthExceeded, InvalidRequest, Overloaded, UnknownModel
from phloem.serve.client import EngineClient
from phloem.serve.openai.params import ModelLimits, check_token_ids
from phloem.serve.openai.requests import ChatMessage
from phloem.serve.text.chat import ChatTemplate
from phloem.serve.text.tokenizer import Tokenizer

T = TypeVar("T")

_LARGE_TEXT_CHARS = 8192
"""Longer text is tokenized in a thread: it would hold up every other stream for more than a millisecond."""


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """Collaborators of the endpoints; nothing in here changes but the engine's life."""

    client: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    model_name: str
    created: int

    @property
    def limits(self) -> ModelLimits:
        """The engine's limits. Raises Overloaded while it is still starting."""
        if (engine := self.client.engine) is None:
            raise Overloaded("the engine is still starting", retry_after_s=2)
        return ModelLimits(engine.max_model_len, engine.max_prompt_len, engine.vocab_size)

    def check_model(self, name: str | None) -> str:
        """The name the answer carries: as it was asked for. Raises UnknownModel; no name means the served model."""
        if name is not None and name != self.model_name:
            message = f"model {name[:100]!r} is not served here; this server has {self.model_name!r}"
            raise UnknownModel(message, field="model")
        return self.model_name

    async def encode_texts(self, texts: list[str], *, add_special: bool, allow_special: bool) -> list[list[int]]:
        """Token ids of prompts. Raises InvalidRequest or ContextLengthExceeded, the latter before tokenizing."""
        for text in texts:
            if not text:
                raise InvalidRequest("prompt: empty; send some text", field="prompt")
            self._check_length(self.tokenizer.least_tokens(text), field="prompt")

        def encode() -> list[list[int]]:
            return [self.tokenizer.encode(text, allow_special=allow_special, add_special=add_special) for text in texts]

        encoded = await _off_loop(encode, num_chars=sum(map(len, texts)))
        return [self._check_ids(tokens, field="prompt") for tokens in encoded]

    async def encode_chat(
        self,
        messages: list[ChatMessage],
        *,
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
        kwargs: dict[str, Any] | None,
    ) -> list[int]:
        """Token ids of a conversation through the model's chat template."""
        if not messages:
            raise InvalidRequest("messages: empty; send at least one message", field="messages")
        texts = [text for message in messages for text in message.texts]
        self._check_length(sum(map(self.tokenizer.least_tokens, texts)), field="messages")
        plain: list[dict[str, Any]] = msgspec.to_builtins(messages)

        def encode() -> list[int]:
            return self.chat_template.encode(
                plain,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=bool(continue_final_message),
                kwargs=kwargs,
            )

        return self._check_ids(await _off_loop(encode, num_chars=sum(map(len, texts))), field="messages")

    def _check_length(self, least: int, *, field: str) -> None:
        longest = self.limits.max_prompt_len
        if least > longest:
            message = f"{field}: at least {least} tokens, but this model takes at most {longest}; shorten it"
            raise ContextLengthExceeded(message, field=field)

    def _check_ids(self, tokens: list[int], *, field: str) -> list[int]:
        """A tokenizer may know more tokens than the model has rows for."""
        check_token_ids(tokens, field=field, limits=self.limits)
        return tokens


async def _off_loop(encode: Callable[[], T], *, num_chars: int) -> T:
    return await asyncio.to_thread(encode) if num_chars > _LARGE_TEXT_CHARS else encode()
