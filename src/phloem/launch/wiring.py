"""The object graph of one engine on one page: model -> worker -> pool -> ledger -> scheduler -> loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from phloem.core import wire
from phloem.core.clock import MonotonicClock
from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.launch.order import NULL_MODEL
from phloem.launch.stages import Stages
from phloem.launch.text import BYTE_VOCAB_SIZE, END_ID, NUM_PRINTABLE, tokenizer_json_of
from phloem.runtime.grammar.gate import GrammarGate
from phloem.runtime.grammar.grammars import Grammars
from phloem.runtime.grammar.vocabulary import Vocabulary
from phloem.runtime.loop import Inbox, Loop, Outbox, Worker
from phloem.runtime.null import NullWorker, hash_chooser
from phloem.runtime.record import Recorder, RecordingScheduler
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A loop that is ready to run, and what it says of itself."""

    loop: Loop
    hands: Hands
    max_prompt_len: int
    recording: BinaryIO | None

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
        )

    def close(self) -> None:
        """Give the model's memory back, and complete the recording."""
        self.hands.worker.close()
        if self.recording is not None:
            self.recording.close()


def build_engine(*, config: Config, source: Path | str, inbox: Inbox, outbox: Outbox, stages: Stages) -> Engine:
    """Wire an engine between `inbox` and `outbox`. ModelError and ConfigError say what
    is wrong with the model at `source` (a path, or dummy:<name>) or with the machine's memory."""
    hands = null_hands(config) if source == NULL_MODEL else build_hands(config, source, stages=stages)
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
    )
    scheduler = make_scheduler(settings)
    recording = None if config.record is None else open_recording(config.record)
    decider = scheduler if recording is None else RecordingScheduler(scheduler, Recorder(recording, settings=settings))
    clock = MonotonicClock()
    loop = Loop(
        scheduler=decider,
        worker=hands.worker,
        inbox=GrammarGate(inbox=inbox, outbox=outbox, grammars=hands.grammars),
        outbox=outbox,
        clock=clock,
        depth=hands.overlap_depth,
    )
    return Engine(loop=loop, hands=hands, max_prompt_len=scheduler.max_prompt_len, recording=recording)


def open_recording(path: str) -> BinaryIO:
    """The file that decisions are recorded to. ConfigError when it cannot be written."""
    try:
        return open(path, "wb")
    except OSError as error:
        raise ConfigError(f"cannot record to {path}: {error.strerror}", field="record") from error


def overlap_depth(config: Config) -> int | None:
    """Steps planned ahead; None leaves it to the device."""
    return int(config.overlap) if config.overlap != "auto" else None


def build_hands(config: Config, source: Path | str, *, stages: Stages) -> Hands:
    """A worker that computes the model at `source`. Imports torch."""
    with stages.stage("import torch"):
        from phloem.runtime.exec.build import build_worker

    built = build_worker(
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
    )
    return Hands(
        worker=built.worker,
        num_pages=built.num_pages,
        max_running=built.max_running,
        max_step_tokens=built.max_step_tokens,
        max_model_len=built.max_model_len,
        vocab_size=built.vocab_size,
        eos_token_ids=built.eos_token_ids,
        memory=built.memory,
        backend=built.backend,
        overlap_depth=built.overlap_depth,
        grammars=built.grammars,
    )


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
