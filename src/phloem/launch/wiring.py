"""The object graph of one engine on one page: model -> worker -> pool -> ledger -> scheduler -> loop."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from phloem.core import wire
from phloem.core.clock import MonotonicClock
from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.launch.handover import Handover, join_handover
from phloem.launch.order import EXIT_ENGINE, NULL_MODEL
from phloem.launch.ranks import START_TIMEOUT_S, Ranks, mesh_of
from phloem.launch.stages import Stages
from phloem.launch.text import BYTE_VOCAB_SIZE, END_ID, NUM_PRINTABLE, tokenizer_json_of
from phloem.parallel.mesh import Mesh
from phloem.runtime.grammar.gate import GrammarGate
from phloem.runtime.grammar.grammars import Grammars
from phloem.runtime.grammar.vocabulary import Vocabulary
from phloem.runtime.handover.fetch import Posts
from phloem.runtime.handover.pages import PageBytes
from phloem.runtime.loop import Loop, Outbox, Worker
from phloem.runtime.null import NullWorker, hash_chooser
from phloem.runtime.record import Recorder, RecordingScheduler
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler

if TYPE_CHECKING:
    import torch

    from phloem.runtime.exec.built import BuiltWorker

GRACE_S = 1.5
NULL_CONTEXT, NULL_PAGES, NULL_ROWS, NULL_STEP_TOKENS, NULL_STEP_S = 4096, 4096, 64, 1024, 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """The half that computes, and what the half that decides must know of it."""

    worker: Worker
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
    num_micro_batches: int = 1
    ranks: Ranks | None = None
    page_bytes: PageBytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A loop that is ready to run, and what it says of itself."""

    loop: Loop
    hands: Hands
    max_prompt_len: int
    recording: BinaryIO | None
    handover: Handover

    def ready(self, *, name: str, stages: tuple[tuple[str, float], ...]) -> wire.Ready:
        """The introduction that the front end waits for."""
        return wire.Ready(
            model=name,
            max_model_len=self.hands.max_model_len,
            max_prompt_len=self.max_prompt_len,
            vocab_size=self.hands.vocab_size,
            stages=stages,
            memory=f"{self.hands.memory}; {self.hands.backend}",
            is_warm=self.hands.worker.is_warm,
            role=self.handover.role,
            kv_address=self.handover.address,
            kv_fingerprint=self.handover.fingerprint,
        )

    def close(self) -> None:
        """Give the model's memory back, and complete the recording."""
        self.handover.close()
        self.hands.worker.close()
        if self.hands.ranks is not None:
            self.hands.ranks.end()
        if self.recording is not None:
            self.recording.close()


def build_engine(
    *,
    config: Config,
    source: Path | str,
    inbox: Posts,
    outbox: Outbox,
    stages: Stages,
    on_lost: Callable[[str], None] = lambda why: None,
) -> Engine:
    """Wire an engine between `inbox` and `outbox`. ModelError and ConfigError say what
    is wrong with the model at `source` (a path, or dummy:<name>) or with the machine's memory. `on_lost` is called, on
    some thread, when a rank of this replica is gone."""
    hands = null_hands(config) if source == NULL_MODEL else build_hands(config, source, stages=stages, on_lost=on_lost)
    settings = SchedulerSettings(
        num_pages=hands.num_pages,
        page_size=config.page_size,
        max_rows=hands.max_running,
        max_step_tokens=hands.max_step_tokens,
        max_model_len=hands.max_model_len,
        eos_token_ids=hands.eos_token_ids,
        policy=config.policy,
        seed=config.seed,
        prefix_cache=config.prefix_cache,
        num_micro_batches=hands.num_micro_batches,
    )
    scheduler = make_scheduler(settings)
    recording = None if config.record is None else open_recording(config.record)
    decider = scheduler if recording is None else RecordingScheduler(scheduler, Recorder(recording, settings=settings))
    handover = join_handover(config, hands.page_bytes, inbox=inbox, outbox=outbox)
    clock = MonotonicClock()
    loop = Loop(
        scheduler=decider,
        worker=hands.worker,
        inbox=GrammarGate(inbox=handover.inbox, outbox=handover.outbox, grammars=hands.grammars),
        outbox=handover.outbox,
        clock=clock,
        depth=hands.overlap_depth,
    )
    return Engine(
        loop=loop, hands=hands, max_prompt_len=scheduler.max_prompt_len, recording=recording, handover=handover
    )


def open_recording(path: str) -> BinaryIO:
    """The file that decisions are recorded to. ConfigError when it cannot be written."""
    try:
        return open(path, "wb")
    except OSError as error:
        raise ConfigError(f"cannot record to {path}: {error.strerror}", field="record") from error


def overlap_depth(config: Config) -> int | None:
    """Steps planned ahead; None leaves it to the device."""
    return int(config.overlap) if config.overlap != "auto" else None


def build_hands(config: Config, source: Path | str, *, stages: Stages, on_lost: Callable[[str], None]) -> Hands:
    """A worker that computes the model at `source`, alone or with other ranks. Imports torch."""
    mesh = mesh_of(config)
    if mesh.size == 1:
        built = build_rank_0(config, source, stages=stages, ranks=None)
        return hands_of(built, built.worker, overlap_depth=built.overlap_depth)
    ranks = Ranks(config=config, source=source, on_lost=on_lost)
    try:
        built = build_rank_0(config, source, stages=stages, ranks=ranks)
        worker = join_ranks(built, ranks, mesh, stages=stages)
    except BaseException:
        ranks.end()
        raise
    depth = max(built.overlap_depth, mesh.pipe - 1)
    return hands_of(built, worker, overlap_depth=depth, num_micro_batches=mesh.pipe, ranks=ranks)


def build_rank_0(config: Config, source: Path | str, *, stages: Stages, ranks: Ranks | None) -> BuiltWorker:
    """The worker of this process, alone or with others."""
    with stages.stage("import torch"):
        from phloem.parallel.comm import Comm, Company, alone
        from phloem.runtime.exec.build import build_worker

    place = mesh_of(config).place(0)

    def meet(device: torch.device) -> Comm:
        if ranks is None:
            return alone(device)
        ranks.post.await_arrivals(timeout_s=START_TIMEOUT_S)
        return Comm.meet(place, address=ranks.meeting, device=device)

    return build_worker(
        model=source,
        dtype=config.dtype,
        quantize=config.quantize,
        kv_cache_dtype=config.kv_cache_dtype,
        deterministic=config.deterministic,
        device=config.device,
        threads=config.threads,
        max_model_len=config.max_model_len,
        memory_gb=config.memory_gb,
        page_size=config.page_size,
        max_running=config.max_running,
        max_step_tokens=config.max_step_tokens,
        overlap_depth=overlap_depth(config),
        report=stages.report,
        tokenizer_json=lambda: tokenizer_json_of(source),
        company=Company(place, meet),
    )


def hands_of(
    built: BuiltWorker,
    worker: Worker,
    *,
    overlap_depth: int,
    num_micro_batches: int = 1,
    ranks: Ranks | None = None,
) -> Hands:
    """What was built, as the engine needs it."""
    return Hands(
        worker=worker,
        num_pages=built.num_pages,
        max_running=built.max_running,
        max_step_tokens=built.max_step_tokens,
        max_model_len=built.max_model_len,
        vocab_size=built.vocab_size,
        eos_token_ids=built.eos_token_ids,
        memory=built.memory,
        backend=built.backend if ranks is None else f"{ranks.description}, each: {built.backend}",
        overlap_depth=overlap_depth,
        grammars=built.grammars,
        num_micro_batches=num_micro_batches,
        ranks=ranks,
        page_bytes=built.page_bytes if ranks is None else None,
    )


def join_ranks(built: BuiltWorker, ranks: Ranks, mesh: Mesh, *, stages: Stages) -> Worker:
    """Rank 0's worker and the others as one, when all are there and alike."""
    from phloem.runtime.exec.group import GroupWorker

    assert built.as_rank is not None
    with stages.stage("other ranks"):
        ranks.await_all(built.fingerprint)
    return GroupWorker(own=built.as_rank, post=ranks.post, samples_here=mesh.pipe == 1)


def leave(why: str) -> None:
    """A rank is lost. The step that misses it fails by itself, and with it every open request; an idle engine has none
    and just ends, to be started again."""
    sys.stderr.write(f"phloem: {why}\n")
    threading.Timer(GRACE_S, os._exit, (EXIT_ENGINE,)).start()


def null_hands(config: Config) -> Hands:
    """A worker without a model, for trying the server: it needs no torch and no memory."""
    max_running = config.max_running or NULL_ROWS
    choose = hash_chooser(vocab_size=NUM_PRINTABLE)  # readable nonsense, which never ends by itself
    grammars = Grammars(lambda: Vocabulary(tokenizer_json_of(NULL_MODEL), BYTE_VOCAB_SIZE, (END_ID,)))
    worker = NullWorker(
        num_pages=NULL_PAGES,
        page_size=config.page_size,
        max_rows=max_running,
        choose=choose,
        step_s=NULL_STEP_S,
        verify=False,
        grammars=grammars,
    )
    return Hands(
        worker=worker,
        page_bytes=worker.page_bytes,
        num_pages=NULL_PAGES,
        max_running=max_running,
        max_step_tokens=config.max_step_tokens or NULL_STEP_TOKENS,
        max_model_len=min(config.max_model_len or NULL_CONTEXT, NULL_CONTEXT),
        vocab_size=BYTE_VOCAB_SIZE,
        eos_token_ids=(END_ID,),
        memory=f"KV cache: {NULL_PAGES:,} pages of nothing",
        backend="null worker",
        overlap_depth=overlap_depth(config) or 0,
        grammars=grammars,
    )
