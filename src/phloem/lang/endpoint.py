"""EndpointEngine: programs against any OpenAI-compatible server, over HTTP with the standard library.

A state is text, or messages once a turn was opened: such a server keeps no tokens between requests, so every request
sends everything again, and only its own prefix cache, if it has one, makes that cheap. What plain servers cannot do
(`regex`, `grammar`, a second generation inside an assistant's turn) is done with the fields that vLLM and this server
understand, when `extensions` is on, and is a ProgramError naming the node otherwise; so is a selection inside a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from phloem.core.errors import InvalidRequest, RequestFailed
from phloem.lang.engine import Listener, Need, Said, Score, Usage
from phloem.lang.errors import ProgramError
from phloem.lang.ir import Gen, Method, Role

TIMEOUT_S = 600.0


class Message(msgspec.Struct, frozen=True):
    """One turn."""

    role: Role
    content: str = ""


class TextState(msgspec.Struct, frozen=True):
    """What was said: `text` outside of turns, or `messages`; the last one is open."""

    text: str = ""
    messages: tuple[Message, ...] = ()


class EndpointEngine:
    """An `Engine` of lang/ at `url` (such as http://127.0.0.1:8000/v1)."""

    max_state_tokens = 0
    tokens_per_page = 0

    def __init__(
        self, url: str, *, model: str, api_key: str = "unused", extensions: bool = True, max_parallel: int = 32
    ) -> None:
        self.max_parallel = max_parallel
        self._url = urlsplit(url)
        self._model, self._api_key, self._extensions = model, api_key, extensions

    # -- states

    def start(self) -> TextState:
        """Nothing said yet."""
        return TextState()

    def num_tokens(self, state: TextState) -> int:
        """Unknown."""
        return 0

    def text(self, state: TextState) -> str:
        """Turns as `role: content`: the server alone knows how it writes them."""
        if not state.messages:
            return state.text
        return "\n".join(f"{message.role}: {message.content}" for message in state.messages)

    def add_text(self, state: TextState, text: str) -> TextState:
        """Append to the open turn, or to the text."""
        if not state.messages:
            return TextState(state.text + text)
        *before, last = state.messages
        return TextState("", (*before, Message(last.role, last.content + text)))

    def open_turn(self, state: TextState, role: Role) -> TextState:
        """One message more."""
        return TextState("", (*state.messages, Message(role)))

    def close_turn(self, state: TextState) -> TextState:
        """The next message closes it."""
        return state

    def add_suffixes(self, state: TextState, *, base: TextState, branches: Sequence[TextState]) -> TextState:
        """What each branch said in the open turn, or in the text."""
        for branch in branches:
            if len(branch.messages) != len(base.messages):
                raise InvalidRequest("join: a branch that opened turns cannot be appended", field="program")
            state = self.add_text(state, _open_text(branch)[len(_open_text(base)) :])
        return state

    def lease(self) -> str:
        """Such a server keeps what it likes."""
        return ""

    def release(self, leases: Sequence[str]) -> None:
        """Nothing was leased."""

    # -- the model

    async def generate(
        self, state: TextState, gen: Gen, *, seed: int, place: str, listen: Listener, needs: Sequence[Need] = ()
    ) -> tuple[TextState, Said]:
        """One streamed request."""
        body: dict[str, Any] = {
            "max_tokens": gen.max_tokens,
            "temperature": gen.temperature,
            "top_p": gen.top_p,
            "seed": seed % (1 << 31),
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"stop": list(gen.stop)} if gen.stop else {}),
            **self._constraint(gen, place),
        }
        if self._extensions:
            body |= {"top_k": gen.top_k, "min_p": gen.min_p}
        path, prompt = self._prompt(state, place)
        texts: list[str] = []
        finish, usage = "length", Usage(requests=1)
        async for chunk in self._stream(path, {**prompt, **body}):
            for choice in chunk.get("choices", ()):
                text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                if text:
                    texts.append(text)
                    listen(text)
                finish = choice.get("finish_reason") or finish
            if chunk.get("usage"):
                usage = _usage(chunk["usage"])
        text = "".join(texts)
        return self.add_text(state, text), Said(text=text, finish=finish, usage=usage)

    async def score(
        self, state: TextState, choices: Sequence[str], *, method: Method, place: str, needs: Sequence[Need] = ()
    ) -> tuple[Sequence[Score], Usage]:
        """Completions with `echo` and `logprobs`, a request a choice. Turns have no such thing: refused."""
        if state.messages:
            message = f"{place}: an endpoint cannot score inside a turn; use gen(choices=[...]), or run it in process"
            raise ProgramError(message, field=place)
        if not state.text:
            raise ProgramError(f"{place}: nothing was said before; append some text first", field=place)
        if method == "unconditional_normalized":
            raise ProgramError(f"{place}: an endpoint has no token to begin a text; use another method", field=place)
        results = await asyncio.gather(*(self._score(state.text, choice) for choice in choices))
        return [score for score, _ in results], sum((usage for _, usage in results), Usage())

    async def _score(self, text: str, choice: str) -> tuple[Score, Usage]:
        body = {"prompt": text + choice, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 0}
        answer = await asyncio.to_thread(self._post, "/completions", body)
        logprobs = answer["choices"][0]["logprobs"]
        offsets = logprobs["text_offset"]
        chosen = [index for index, offset in enumerate(offsets) if len(text) <= offset < len(text) + len(choice)]
        tokens = tuple(hash(logprobs["tokens"][index]) & 0x7FFFFFFF for index in chosen)  # only compared
        values = tuple(logprobs["token_logprobs"][index] or 0.0 for index in chosen)
        return Score(tokens, values), _usage(answer.get("usage") or {})

    async def check(self, gen: Gen, *, place: str) -> None:
        """Whether the endpoint has a word for the constraint."""
        self._constraint(gen, place)

    async def warm(self, state: TextState, *, lease: str) -> Usage:
        """Nothing: whether it would help is not known here."""
        return Usage()

    # -- the wire

    def _constraint(self, gen: Gen, place: str) -> dict[str, Any]:
        if gen.json_schema is not None:
            schema = {"name": gen.name, "schema": gen.json_schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        given = {"regex": gen.regex, "choice": gen.choices, "grammar": gen.grammar}
        given = {name: value for name, value in given.items() if value is not None}
        if given and not self._extensions:
            raise ProgramError(f"{place}: a plain endpoint has no {', '.join(given)}; use json_schema", field=place)
        return {f"guided_{name}": value for name, value in given.items()}

    def _prompt(self, state: TextState, place: str) -> tuple[str, dict[str, Any]]:
        if not state.messages:
            return "/completions", {"prompt": state.text}
        messages = [{"role": each.role, "content": each.content} for each in state.messages]
        if state.messages[-1].role != "assistant":
            raise ProgramError(f"{place}: an endpoint generates in an assistant's turn only", field=place)
        if not state.messages[-1].content:
            return "/chat/completions", {"messages": messages[:-1]}
        if not self._extensions:
            raise ProgramError(f"{place}: a plain endpoint cannot go on inside a turn; generate first", field=place)
        going_on = {"continue_final_message": True, "add_generation_prompt": False}
        return "/chat/completions", {"messages": messages, **going_on}

    async def _stream(self, path: str, body: dict[str, Any]) -> Any:
        """Chunks of a streamed answer. The connection is closed, and so the request aborted, when nobody listens."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Any] = asyncio.Queue()
        connection = self._connection()

        def put(item: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(queue.put_nowait, item)

        thread = threading.Thread(target=self._read, args=(connection, path, body, put), daemon=True)
        thread.start()
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            if connection.sock is not None:
                connection.sock.close()

    def _read(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any], put: Callable[[object], None]
    ) -> None:
        try:
            for chunk in self._events(self._ask(connection, path, body)):
                put(chunk)
            put(None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            put(RequestFailed(f"the endpoint broke off: {error}"))
        except (InvalidRequest, RequestFailed) as error:
            put(error)
        finally:
            connection.close()

    @staticmethod
    def _events(response: http.client.HTTPResponse) -> Iterator[Any]:
        for line in response:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RequestFailed(f"the endpoint failed: {chunk['error'].get('message', '')}")
            yield chunk

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        connection = self._connection()
        try:
            return json.loads(self._ask(connection, path, body).read())
        except (OSError, http.client.HTTPException) as error:
            raise RequestFailed(f"the endpoint broke off: {error}") from error
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._api_key}"}
        connection.request(
            "POST", self._url.path.rstrip("/") + path, json.dumps({"model": self._model, **body}), headers
        )
        response = connection.getresponse()
        if response.status != 200:
            text = response.read().decode(errors="replace")[:500]
            kind = InvalidRequest if response.status < 500 else RequestFailed
            raise kind(f"the endpoint answers {response.status}: {text}")
        return response

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        return kind(self._url.netloc, timeout=TIMEOUT_S)


def _open_text(state: TextState) -> str:
    return state.messages[-1].content if state.messages else state.text


def _usage(usage: dict[str, Any]) -> Usage:
    prompt = usage.get("prompt_tokens", 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(
        requests=1,
        prompt_tokens=prompt,
        computed_tokens=prompt - cached,
        generated_tokens=usage.get("completion_tokens", 0),
    )
