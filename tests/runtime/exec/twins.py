"""One model under two workers: the one of the CPU, and the one of a device, here with the host as its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tests.runtime.exec.row_reference import ReferenceRowKernels

from phloem.core.clock import ManualClock
from phloem.core.plan import StepPlan
from phloem.core.request import SamplingParams
from phloem.core.result import StepResult
from phloem.core.wire import Finished, Submit, Tokens
from phloem.graph.capture.inputs import StepInputs, StepLimits
from phloem.graph.compile import compile_graph
from phloem.graph.lower.cpu import ReferenceTarget
from phloem.graph.lower.cuda import CudaTarget, reference_target
from phloem.memory.pool.kv import KvPool
from phloem.models.catalog import define_dummy
from phloem.runtime.exec.build_device import DeviceLimits, device_worker, eager_steps, row_store
from phloem.runtime.exec.cuda_worker import CudaWorker
from phloem.runtime.exec.device_step import RowKernels
from phloem.runtime.exec.queue import HostQueue
from phloem.runtime.exec.rows import RowStore
from phloem.runtime.exec.sampling.state import Grammars
from phloem.runtime.exec.worker import Worker
from phloem.runtime.loop import Loop
from phloem.runtime.mailbox import Mailbox
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler

MODEL = "dummy:qwen3-tiny"
PAGE_SIZE = 16
HOST = torch.device("cpu")
NUMBERS = 1e-4  # nats: how far reported log-probabilities may be apart; batches of other sizes round differently


def cpu_worker(settings: SchedulerSettings, *, grammars: Grammars | None = None) -> Worker:
    definition = define_dummy(MODEL)
    step = compile_graph(definition)
    target = ReferenceTarget(activation=torch.float32, page_size=PAGE_SIZE, reason="a test")
    pool = KvPool(
        layers=step.layers, num_pages=settings.num_pages, page_size=PAGE_SIZE, dtype=torch.float32, device=HOST
    )
    limits = StepLimits(settings.max_step_tokens, settings.max_rows, settings.max_model_len // PAGE_SIZE + 2)
    program = target.load(step, definition.checkpoint)(caches=pool.layers, inputs=StepInputs(limits))
    rows = RowStore(
        max_rows=settings.max_rows,
        max_model_len=settings.max_model_len,
        page_size=PAGE_SIZE,
        vocab_size=definition.vocab_size,
        end_token_ids=settings.eos_token_ids,
        grammars=grammars,
    )
    return Worker(program=program, pool=pool, rows=rows, clock=ManualClock(), overlap_depth=0)


def host_device_worker(
    settings: SchedulerSettings,
    *,
    target: CudaTarget | None = None,
    kernels: RowKernels | None = None,
    grammars: Grammars | None = None,
) -> CudaWorker:
    """The device worker on the host. The references write padding, whose slot is -1, to the last page: one more."""
    definition = define_dummy(MODEL)
    step = compile_graph(definition)
    target = target or reference_target(activation=torch.float32, device=HOST, page_size=PAGE_SIZE)
    pool = KvPool(
        layers=step.layers, num_pages=settings.num_pages + 1, page_size=PAGE_SIZE, dtype=target.activation, device=HOST
    )
    limits = DeviceLimits(
        max_rows=settings.max_rows,
        max_step_tokens=settings.max_step_tokens,
        max_model_len=settings.max_model_len,
        page_size=PAGE_SIZE,
    )
    return device_worker(
        program=target.load(step, definition.checkpoint)(caches=pool.layers),
        pool=pool,
        kernels=kernels or ReferenceRowKernels(page_size=PAGE_SIZE),
        queue=HostQueue(),
        make_steps=eager_steps,
        limits=limits,
        store=row_store(limits, vocab_size=definition.vocab_size, device=HOST),
        vocab_size=definition.vocab_size,
        end_token_ids=settings.eos_token_ids,
        clock=ManualClock(),
        grammars=grammars,
    )


@dataclass
class TwinHandle:
    ours: object
    theirs: object

    def wait(self) -> StepResult:
        theirs, ours = self.theirs.wait(), self.ours.wait()
        assert dict(zip(ours.rows, ours.tokens)) == dict(zip(theirs.rows, theirs.tokens)), f"step {ours.step}"
        assert ours.rows == theirs.rows, "rows are reported in batch order"
        assert dict(ours.failed).keys() == dict(theirs.failed).keys()
        same_numbers(dict(zip(ours.rows, ours.logprobs)), dict(zip(theirs.rows, theirs.logprobs)))
        same_numbers(dict(ours.prompt_logprobs), dict(theirs.prompt_logprobs))
        return theirs


class TwinWorker:
    """Gives every plan to both and compares their results when they are asked for."""

    def __init__(self, ours, theirs) -> None:
        self.ours, self.theirs = ours, theirs
        self.plans: list[StepPlan] = []
        self.is_warm = True

    def prepare(self) -> bool:
        return False

    def submit(self, plan: StepPlan) -> TwinHandle:
        self.plans.append(plan)
        return TwinHandle(self.ours.submit(plan), self.theirs.submit(plan))

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


def same_numbers(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for row, entries in theirs.items():
        assert [entry.token_id for entry in ours[row]] == [entry.token_id for entry in entries]
        for mine, other in zip(ours[row], entries, strict=True):
            assert abs(mine.logprob - other.logprob) < NUMBERS


def run(worker, settings: SchedulerSettings, requests: list[tuple[tuple[int, ...], SamplingParams]], *, depth: int):
    """Serve the requests to the end; the tokens of each choice of each."""
    inbox, outbox = Mailbox(), Mailbox()
    scheduler = make_scheduler(settings)
    loop = Loop(scheduler=scheduler, worker=worker, inbox=inbox, outbox=outbox, clock=ManualClock(), depth=depth)
    inbox.send([Submit(f"{index}", prompt, sampling) for index, (prompt, sampling) in enumerate(requests)])
    tokens: dict[tuple[str, int], list[int]] = {}
    finished = set()
    while loop.turn():
        for event in outbox.poll(0.0):
            if isinstance(event, Tokens):
                tokens.setdefault((event.request_id, event.choice), []).extend(event.token_ids)
            elif isinstance(event, Finished):
                finished.add(event.request_id)
    worker.close()
    assert len(finished) == len(requests), "every request finishes"
    scheduler.check()
    return tokens, scheduler.stats(0.0)
