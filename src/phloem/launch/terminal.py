"""`phloem generate` and `phloem chat`: a model in the terminal, in this process or on a server."""

from __future__ import annotations

import argparse
import http.client
import os
import readline
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from phloem.core.config import Config
from phloem.core.errors import CallerError, ConfigError, PhloemError, RequestFailed
from phloem.core.request import SamplingParams
from phloem.launch.options import resolve_options

HELP = """\
/system TEXT   say who the model is (starts anew)
/clear         forget the conversation
/help          this list
/quit          leave (so does Ctrl-D)"""

PROMPT = "> "
REMEMBERED_LINES = 1000
CONNECT_TIMEOUT_S = 600

Messages = list[dict[str, str]]
Answer = Callable[[Messages], Iterator[str]]


def generate(arguments: argparse.Namespace) -> int:
    """Print the continuation of one prompt while it is made."""
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    llm = _load(arguments)
    with llm:
        params = _params(arguments)
        if arguments.chat:
            pieces = llm.stream_chat([{"role": "user", "content": prompt}], params)
        else:
            pieces = llm.stream(prompt, params)
        _print_pieces(pieces)
    return 0


def chat(arguments: argparse.Namespace) -> int:
    """Ask, answer, remember, until the user leaves."""
    if arguments.url is not None:
        return _converse(_remote(arguments), system=arguments.system)
    with _load(arguments) as llm:
        params = _params(arguments)
        return _converse(lambda messages: llm.stream_chat(messages, params), system=arguments.system)


def _load(arguments: argparse.Namespace) -> Any:
    from phloem.launch.offline import LLM

    config = resolve_options(arguments).config
    values = msgspec.structs.asdict(config)
    print(f"loading {values['model']} ...", end="\r", file=sys.stderr, flush=True)
    try:
        llm = LLM(**values)
    except PhloemError:
        print(file=sys.stderr)  # the error stands on a line of its own
        raise
    print(f"{llm.name}, context {llm.max_model_len:,} tokens" + " " * 20, file=sys.stderr)
    return llm


def _params(arguments: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        stop=tuple(arguments.stop),
    )


def _print_pieces(pieces: Iterator[str]) -> str:
    """Show the text as it comes; the whole text. Ctrl-C ends the answer, not the program's good manners."""
    whole = []
    try:
        for piece in pieces:
            whole.append(piece)
            print(piece, end="", flush=True)
    finally:
        print(flush=True)
    return "".join(whole)


def _converse(answer: Answer, *, system: str | None) -> int:
    _remember_lines()
    print("Say something; /help lists commands.", file=sys.stderr)
    start: Messages = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    while True:
        try:
            line = input(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if line.startswith("/"):
            command, _, rest = line.partition(" ")
            if command in ("/quit", "/exit"):
                return 0
            if command == "/system":
                start = [{"role": "system", "content": rest}] if rest else []
            if command in ("/system", "/clear"):
                messages = list(start)
            else:
                print(HELP)
        elif line:
            messages = _turn(answer, messages, line)


def _turn(answer: Answer, messages: Messages, line: str) -> Messages:
    """The conversation with one more question and its answer; unchanged when the answer failed or was interrupted."""
    asked = [*messages, {"role": "user", "content": line}]
    try:
        text = _print_pieces(answer(asked))
    except KeyboardInterrupt:
        print("(interrupted)")
        return messages
    except (CallerError, RequestFailed) as error:
        print(f"phloem: error: {error.message}", file=sys.stderr)
        return messages
    return [*asked, {"role": "assistant", "content": text}]


def _remember_lines() -> None:
    """Arrow keys recall what was typed before, also in earlier sessions."""
    import atexit

    base = os.environ.get("XDG_STATE_HOME")
    path = (Path(base) if base else Path.home() / ".local" / "state") / "phloem" / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        readline.read_history_file(path)
    except OSError as error:
        print(f"phloem: lines are not remembered: {error}", file=sys.stderr)
        return
    readline.set_history_length(REMEMBERED_LINES)
    atexit.register(readline.write_history_file, path)


def _remote(arguments: argparse.Namespace) -> Answer:
    """Answers from a server's /v1/chat/completions, streamed."""
    config: Config = resolve_options(arguments).config
    url = arguments.url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {arguments.url!r} is not a URL; give one such as http://127.0.0.1:8000", field="url")
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if config.api_key is not None:
        headers["Authorization"] = f"Bearer {config.api_key}".encode().decode("latin-1")  # urllib's own encoding
    options = {
        "stream": True,
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "stop": arguments.stop or None,
    }

    def answer(messages: Messages) -> Iterator[str]:
        body = msgspec.json.encode({**options, "messages": messages})
        try:
            request = urllib.request.Request(url, data=body, headers=headers)
            with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as response:
                yield from _deltas(response)
        except urllib.error.HTTPError as error:
            raise RequestFailed(f"the server refused: {_message_of(error.read())}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RequestFailed(f"cannot talk to {url}: {error}; is the server running? try: phloem serve") from error

    return answer


def _deltas(lines: Iterator[bytes]) -> Iterator[str]:
    """The text in a stream of server-sent events. RequestFailed when it says so, or ends without [DONE]."""
    for line in lines:
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if not line.startswith(b"data:"):
            continue
        event = msgspec.json.decode(data, type=dict[str, Any])
        if "error" in event:
            raise RequestFailed(f"the server failed: {event['error']['message']}")
        for choice in event.get("choices", ()):
            yield choice["delta"].get("content") or ""
    raise RequestFailed("the connection ended in the middle of the answer; is the server still running?")


def _message_of(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200]
