"""The whole engine on a GPU: captured against eager bit for bit, and the GPU against float32 references on the CPU."""

from __future__ import annotations

import random

import pytest
import torch

from phloem.core.clock import ManualClock
from phloem.core.plan import ALL_LOGITS, RowStart, StepPlan
from phloem.core.request import SamplingParams
from phloem.core.wire import Finished, Submit, Tokens
from phloem.models.catalog import define_dummy
from phloem.runtime.grammar.grammars import Grammars, no_vocabulary
from phloem.runtime.loop import Loop
from phloem.runtime.mailbox import Mailbox
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MODELS = ("dummy:qwen3-tiny", "dummy:mistral-tiny", "dummy:smollm2-135m")
LIMITS = {"page_size": 32, "max_running": 16, "max_step_tokens": 256, "max_model_len": 512}
LOGIT_NATS = 0.15
"""How far a log-probability in bfloat16 may be from the float32 one, for weights like these."""


def gpu_worker(model: str, *, captures: bool):
    from phloem.runtime.exec.build_cuda import build_on_cuda

    return build_on_cuda(
        define_dummy(model),
        dtype="auto",
        quantize="auto",
        memory_gb=0.5,
        overlap_depth=1,
        report=lambda stage, seconds: None,
        captures=captures,
        grammars=Grammars(no_vocabulary),
        **LIMITS,
    )


def serve(built, requests, *, depth: int) -> dict[tuple[str, int], list[int]]:
    settings = SchedulerSettings(
        num_pages=built.num_pages,
        page_size=LIMITS["page_size"],
        max_rows=LIMITS["max_running"],
        max_step_tokens=LIMITS["max_step_tokens"],
        max_model_len=built.max_model_len,
        policy="fcfs",
    )
    inbox, outbox = Mailbox(), Mailbox()
    scheduler = make_scheduler(settings)
    loop = Loop(scheduler=scheduler, worker=built.worker, inbox=inbox, outbox=outbox, clock=ManualClock(), depth=depth)
    inbox.send([Submit(f"{index}", prompt, sampling) for index, (prompt, sampling) in enumerate(requests)])
    tokens: dict[tuple[str, int], list[int]] = {}
    num_finished = 0
    while loop.turn():
        for event in outbox.poll(0.0):
            if isinstance(event, Tokens):
                tokens.setdefault((event.request_id, event.choice), []).extend(event.token_ids)
            num_finished += isinstance(event, Finished)
    assert num_finished == len(requests)
    return tokens


def requests(seed: int, count: int):
    chance = random.Random(seed)
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 5},
        {"temperature": 1.1, "seed": 6, "top_k": 30, "top_p": 0.9},
        {"temperature": 0.9, "seed": 7, "min_p": 0.05},
        {"temperature": 0.7, "seed": 8, "frequency_penalty": 0.5},
    ]
    return [
        (
            tuple(chance.randrange(3, 300) for _ in range(chance.randrange(1, 300))),
            SamplingParams(max_tokens=chance.randrange(2, 60), ignore_eos=True, **kinds[index % len(kinds)]),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("model", MODELS)
def test_captured_steps_equal_eager_ones_bit_for_bit(model: str) -> None:
    """Red when a graph keeps an address or a size of the step it was captured in, or overlap loses a token."""
    eager, captured = gpu_worker(model, captures=False), gpu_worker(model, captures=True)
    wanted = serve(eager, requests(1, 24), depth=1)  # the same plans: sums depend on how many rows there are
    for _ in range(3):  # first eagerly, then captured, then replayed
        assert serve(captured, requests(1, 24), depth=1) == wanted


@pytest.mark.parametrize("model", MODELS)
def test_log_probabilities_are_those_of_the_float32_reference(model: str) -> None:
    """Red when a kernel, the layout of pages or a chunk's positions are wrong anywhere in the model."""
    from phloem.runtime.exec.build import build_worker

    chance = random.Random(3)
    prompt = tuple(chance.randrange(3, 300) for _ in range(200))
    on_cpu = build_worker(
        model=model,
        dtype="float32",
        quantize="none",
        device="cpu",
        threads=None,
        memory_gb=0.5,
        overlap_depth=0,
        report=lambda stage, seconds: None,
        **LIMITS,
    )
    ours, theirs = score(gpu_worker(model, captures=False).worker, prompt), score(on_cpu.worker, prompt)
    assert len(ours) == len(theirs) == len(prompt) - 1
    assert max(abs(mine - other) for mine, other in zip(ours, theirs)) < LOGIT_NATS


def score(worker, prompt: tuple[int, ...]) -> list[float]:
    """Log-probabilities of the prompt's tokens, computed in three chunks over pages in no order."""
    pages = (3, 1, 6, 0, 5, 2, 7)
    start = RowStart(2, 0, prompt, len(prompt), 0, pages, SamplingParams(temperature=0, prompt_logprobs=0), 0)
    chunks, scores = (70, 1, len(prompt) - 71), []
    for number, count in enumerate(chunks):
        plan = StepPlan(
            step=number,
            starts=(start,) if number == 0 else (),
            rows=(2,),
            num_tokens=(count,),
            logits=(ALL_LOGITS,),
        )
        result = worker.submit(plan).wait()
        assert not result.failed
        scores += [entry.logprob for _, entries in result.prompt_logprobs for entry in entries]
    return scores
