"""What building a worker gives back, on whatever device, and how long each part of it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from phloem.memory.budget import PageBudget
from phloem.models.definition import ModelDefinition
from phloem.runtime.exec.group import RankWorker
from phloem.runtime.grammar.grammars import Grammars
from phloem.runtime.handover.pages import PageBytes
from phloem.runtime.loop import Worker as AnyWorker

Report = Callable[[str, float], None]
"""Called with a start-up stage's name and its seconds when it is done."""


@dataclass(frozen=True)
class StepBounds:
    """How many rows run at once, and how many tokens a step computes at most."""

    max_running: int
    max_step_tokens: int

    def unless(self, max_running: int | None, max_step_tokens: int | None) -> StepBounds:
        """These, where nothing else is asked for."""
        return StepBounds(max_running or self.max_running, max_step_tokens or self.max_step_tokens)


@dataclass(frozen=True)
class BuiltWorker:
    """A worker and what the scheduler and the front end must know of it. `memory` is the pool's arithmetic in words,
    `backend` what runs the model, `overlap_depth` how many steps may be planned ahead, `grammars` what compiles the
    constraints of its rows. `fingerprint` is what all ranks of a replica must have in common, `as_rank` the worker as
    one of them, where it can be one. `page_bytes` are its pages for other replicas, where these can be sent."""

    worker: AnyWorker
    num_pages: int
    max_running: int
    max_step_tokens: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    memory: str
    backend: str
    overlap_depth: int
    grammars: Grammars
    fingerprint: str = ""
    as_rank: RankWorker | None = None
    page_bytes: PageBytes | None = None


def built(
    worker: AnyWorker,
    definition: ModelDefinition,
    budget: PageBudget,
    *,
    bounds: StepBounds,
    backend: str,
    overlap_depth: int,
    grammars: Grammars,
) -> BuiltWorker:
    """A worker with what its definition and its memory say."""
    return BuiltWorker(
        worker=worker,
        num_pages=budget.num_pages,
        max_running=bounds.max_running,
        max_step_tokens=bounds.max_step_tokens,
        max_model_len=budget.max_model_len,
        vocab_size=definition.vocab_size,
        eos_token_ids=definition.eos_ids,
        memory=budget.arithmetic,
        backend=backend,
        overlap_depth=overlap_depth,
        grammars=grammars,
    )


@contextmanager
def timed(stage: str, report: Report) -> Iterator[None]:
    """Report how long the block took."""
    began_s = time.monotonic()
    yield
    report(stage, time.monotonic() - began_s)
