"""What every endpoint works with: the engine, the model's text side, and the engine's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from phloem.core.errors import ContextLengthExceeded, InvalidRequest, Overloaded, UnknownModel
from phloem.core.request import SamplingParams
from phloem.serve.client import EngineClient
from phloem.serve.openai.constraints import ConstraintCheck, constraint_field
from phloem.serve.openai.params import ModelLimits, check_token_ids
from phloem.serve.openai.requests import ChatMessage, ConstraintFields
from phloem.serve.text.chat import ChatTemplate
from phloem.serve.text.formats.choose import Formats
from phloem.serve.text.formats.render import function_json, plain_messages
from phloem.serve.text.formats.spec import Function
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
    constraints: ConstraintCheck
    formats: Formats

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

    def check_decodes(self, address: str) -> None:
        """Raises InvalidRequest where this replica takes no pages from others, or `address` is none."""
        engine = self.client.engine
        if engine is None or engine.role != "decode":
            raise InvalidRequest(
                "x-phloem-kv-from: only a server with --role decode takes it", field="x-phloem-kv-from"
            )
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            message = f"x-phloem-kv-from: {address[:100]!r} is not host:port"
            raise InvalidRequest(message, field="x-phloem-kv-from")

    async def check_constraint(
        self, sampling: SamplingParams, fields: ConstraintFields, *, field: str = "tools"
    ) -> None:
        """Try the constraint of a request before the engine hears of it. InvalidRequest names its field in `fields`, or
        `field` where it came from none of them."""
        if sampling.constraint is not None:
            await self.constraints.check(sampling.constraint, field=constraint_field(fields) or field)

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
        functions: Sequence[Function] = (),
    ) -> list[int]:
        """Token ids of a conversation, and of the functions that the model may call, through its chat template."""
        if not messages:
            raise InvalidRequest("messages: empty; send at least one message", field="messages")
        texts = [text for message in messages for text in message.texts]
        texts += [msgspec.json.encode(function).decode() for function in functions]
        self._check_length(sum(map(self.tokenizer.least_tokens, texts)), field="messages")
        plain: list[dict[str, Any]] = msgspec.to_builtins(messages)
        formats, tools = self.formats, [function_json(function) for function in functions] or None
        if formats.tools is not None and not formats.template_takes_tools:
            plain, tools = plain_messages(formats.tools, plain, functions), None

        def encode() -> list[int]:
            return self.chat_template.encode(
                plain,
                tools=tools,
                arguments_as_text=formats.tools is not None and formats.tools.arguments_are_text,
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
