"""POST /tokenize and /detokenize: what the model reads, and back."""

from __future__ import annotations

import msgspec

from phloem.core.errors import InvalidRequest
from phloem.serve.openai import params
from phloem.serve.openai.backend import Backend
from phloem.serve.openai.logprobs import token_label
from phloem.serve.openai.requests import DetokenizeRequest, TokenizeRequest
from phloem.serve.openai.responses import DetokenizeResponse, TokenizeResponse
from phloem.serve.openai.tools import check_messages, read_tools

tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: TokenizeRequest, *, backend: Backend) -> TokenizeResponse:
    """Token ids of a prompt, or of a conversation through the chat template."""
    backend.check_model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("prompt: send either prompt or messages", field="prompt")
    if request.messages is not None:
        check_messages(request.messages)
        tokens = await backend.encode_chat(
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            kwargs=request.chat_template_kwargs,
            functions=read_tools(request.tools or []),
        )
    else:
        [tokens] = await backend.encode_texts(
            [request.prompt or ""],
            add_special=request.add_special_tokens is not False,
            allow_special=request.allow_special_tokens is True,
        )
    token_bytes = backend.tokenizer.token_bytes
    strings = [token_label(token_bytes(token)) for token in tokens] if request.return_token_strs else None
    return TokenizeResponse(len(tokens), backend.limits.max_model_len, tokens, strings)


async def detokenize(request: DetokenizeRequest, *, backend: Backend) -> DetokenizeResponse:
    """The text of token ids, control tokens included."""
    backend.check_model(request.model)
    params.check_token_ids(request.tokens, field="tokens", limits=backend.limits)
    return DetokenizeResponse(backend.tokenizer.decode(request.tokens, skip_special=False))
