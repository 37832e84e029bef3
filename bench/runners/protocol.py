"""What a runner is: a process that loads one engine and answers commands, a JSON object a line, until its input ends.

    in   {"prompts": [[ids]...], "max_tokens": [n...], "shared_prefix": k, "timed_stream": bool}
    out  {"ready": {...}} once, then one {"result": {...}} or {"error": "..."} a command

Standard library only: this file is imported by the Python of every peer. What the engine itself prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Outcome:
    """What an engine did with one batch: its output ids, and when its first token came if it was timed.

    `first_token_s` counts from the start of the call; `note` says how it was measured and what the engine cached.
    `total_s` is set by a runner whose call did more than the batch; else the call is timed whole.
    """

    outputs: list[list[int]]
    first_token_s: float | None = None
    total_s: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Ready:
    """Who answers: versions, how long loading took, and choices worth knowing when reading the numbers."""

    engine: str
    load_s: float
    versions: dict[str, str] = field(default_factory=dict)
    choices: str = ""


class Engine(Protocol):
    """An engine behind the two questions the harness asks. Greedy, end tokens ignored, exactly `max_tokens` ids."""

    def batch(self, prompts: Prompts, max_tokens: Sequence[int], shared_prefix: int) -> Outcome:
        """All prompts at once. Their first `shared_prefix` tokens are the same: compute them once if the engine can."""

    def stream(self, prompt: Sequence[int], max_tokens: int) -> Outcome:
        """One prompt, noting when its first token is there."""


def serve(name: str, load: Callable[[], tuple[Engine, dict[str, str], str]]) -> None:
    """Load the engine, then answer commands from stdin; `load` returns the engine, its versions and its choices."""
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)
        started_s = time.perf_counter()
        engine, versions, choices = load()
        ready = Ready(engine=name, load_s=time.perf_counter() - started_s, versions=versions, choices=choices)
        print(json.dumps({"ready": asdict(ready)}), file=replies)
        for line in sys.stdin:
            print(json.dumps(_answer(engine, json.loads(line))), file=replies)


def _answer(engine: Engine, command: dict[str, object]) -> dict[str, object]:
    prompts: list[list[int]] = command["prompts"]  # type: ignore[assignment]
    max_tokens: list[int] = command["max_tokens"]  # type: ignore[assignment]
    started_s = time.perf_counter()
    if command["timed_stream"]:
        outcome = engine.stream(prompts[0], max_tokens[0])
    else:
        outcome = engine.batch(prompts, max_tokens, int(str(command["shared_prefix"])))
    elapsed_s = time.perf_counter() - started_s
    counts = [len(output) for output in outcome.outputs]
    if counts != max_tokens:
        return {"error": f"wanted {max_tokens} tokens, got {counts}"}
    return {"result": {**asdict(outcome), "total_s": outcome.total_s or elapsed_s}}
