"""Who writes: the embedded model, a local one, or an endpoint; each runs the same program."""

from __future__ import annotations

import argparse
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from phloem import PhloemError, RunOptions
from viva.compose.grammar import Section, Style
from viva.compose.program import write_plainly, write_sections
from viva.errors import VivaError
from viva.practice.model import EMBEDDED

RUBBISH = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # an answer that has not the protocol's form


class Counts(msgspec.Struct):
    """What a run cost."""

    requests: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that a prefix cache had."""
        return 1 - self.computed_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Run(Protocol):
    """`LLM.run`, or `run_on` with an endpoint."""

    def __call__(self, program: Any, /, options: RunOptions, **arguments: Any) -> Any: ...


class Writer:
    """Writes sections. VivaError when the model cannot be reached, is too slow or answers rubbish."""

    def __init__(self, run: Run, *, name: str, style: Style, has_grammar: bool, timeout_s: float) -> None:
        self.name, self.style, self.counts = name, style, Counts()
        self._run, self._timeout_s = run, timeout_s
        self._program = write_sections if has_grammar else write_plainly

    def write(self, evidence: str, sections: Sequence[Section], *, seed: int) -> dict[str, str]:
        chosen = self._program.given(sections=tuple(sections))
        result = _bounded(
            lambda: self._run(chosen, RunOptions(seed=seed), evidence=evidence), self._timeout_s, name=self.name
        )
        try:
            texts = [str(each["text"]).strip() for each in result["sections"]]
            usage = result.usage
        except RUBBISH as error:
            raise VivaError(f"{self.name} answers rubbish: {error!r}", field="--endpoint") from error
        for name in Counts.__struct_fields__:
            setattr(self.counts, name, getattr(self.counts, name) + getattr(usage, name))
        return {section.name: text for section, text in zip(sections, texts)}


def _bounded(work: Callable[[], Any], timeout_s: float, *, name: str) -> Any:
    """The result; a run that is too slow goes on alone and is forgotten."""
    outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def caught() -> None:
        try:
            outcome.put(work())
        except (PhloemError, OSError, *RUBBISH) as error:
            outcome.put(error)

    threading.Thread(target=caught, daemon=True).start()
    try:
        result = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise VivaError(f"{name}: no answer within {timeout_s:g} s; raise --timeout", field="--timeout") from None
    if isinstance(result, PhloemError):
        raise VivaError(f"{name}: {result.message}", field="--endpoint") from result
    if isinstance(result, Exception):
        raise VivaError(f"{name} answers rubbish: {result!r}", field="--endpoint") from result
    return result


@contextmanager
def chosen_writer(arguments: argparse.Namespace) -> Iterator[Writer]:
    """The writer that the options ask for; a local model lives until the block ends."""
    if arguments.timeout <= 0:
        raise VivaError(f"--timeout {arguments.timeout:g}: give more than 0 seconds", field="--timeout")
    if arguments.endpoint:
        yield _endpoint_writer(arguments)
        return
    from phloem import LLM  # loads torch

    model = arguments.model or "default"
    embedded = any(name in model for name in EMBEDDED)
    style: Style = arguments.prose or ("told" if embedded else "free")
    with LLM(model) as llm:
        yield Writer(llm.run, name=model, style=style, has_grammar=True, timeout_s=arguments.timeout)


def _endpoint_writer(arguments: argparse.Namespace) -> Writer:
    from phloem import EndpointEngine, run_on

    parts = urlsplit(arguments.endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise VivaError(
            f"--endpoint {arguments.endpoint}: give a URL such as http://127.0.0.1:8000/v1", field="--endpoint"
        )
    if not arguments.model:
        raise VivaError("--endpoint needs --model NAME, as the endpoint calls it", field="--model")
    has_grammar = not arguments.plain
    engine = EndpointEngine(arguments.endpoint, model=arguments.model, api_key=arguments.key, extensions=has_grammar)

    def run(program: Any, /, options: RunOptions, **given: Any) -> Any:
        return run_on(engine, program, options, **given)

    name = f"{arguments.model} at {arguments.endpoint}"
    style: Style = arguments.prose or "free"
    return Writer(run, name=name, style=style, has_grammar=has_grammar, timeout_s=arguments.timeout)
