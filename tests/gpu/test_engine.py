"""The whole engine on a GPU: captured against eager bit for bit, and the GPU against float32 references on the CPU."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tokenizers import Tokenizer

from phloem.core.clock import ManualClock
from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, RowStart, StepPlan
from phloem.core.request import Constraint, SamplingParams
from phloem.core.wire import Finished, Submit, Tokens
from phloem.graph.cost import StepLoad
from phloem.launch.text import tokenizer_json_of
from phloem.models.catalog import define_dummy
from phloem.runtime.grammar.grammars import Grammars
from phloem.runtime.grammar.vocabulary import Vocabulary
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


def gpu_worker(model: str, *, captures: bool, **changes):
    from phloem.graph.lower.cuda import DeviceChoices
    from phloem.runtime.exec.build_cuda import build_on_cuda
    from phloem.runtime.exec.built import StepBounds

    definition = define_dummy(model)
    end_ids = definition.eos_ids or (2,)
    numbers = {"dtype": "auto", "quantize": "auto", "kv_cache_dtype": "auto", "deterministic": False}
    choices = {name: changes.pop(name, usual) for name, usual in numbers.items()}
    limits = LIMITS | changes
    return build_on_cuda(
        definition,
        DeviceChoices(**choices, page_size=limits.pop("page_size")),
        memory_gb=0.5,
        overlap_depth=1,
        report=lambda stage, seconds: None,
        captures=captures,
        grammars=Grammars(lambda: Vocabulary(tokenizer_json_of(model), definition.vocab_size, end_ids)),
        bounds=StepBounds(limits.pop("max_running"), limits.pop("max_step_tokens")),
        **limits,
    )


def serve(built, requests, *, depth: int, **changes) -> dict[tuple[str, int], list[int]]:
    limits = LIMITS | changes
    settings = SchedulerSettings(
        num_pages=built.num_pages,
        page_size=limits["page_size"],
        max_rows=limits["max_running"],
        max_step_tokens=limits["max_step_tokens"],
        max_model_len=built.max_model_len,
        policy="fcfs",
        prefix_cache=False,
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
        {"temperature": 0.9, "seed": 9, "repetition_penalty": 1.2, "min_tokens": 2, "logprobs": 5},
        {"temperature": 0.0, "logit_bias": {17: 4.0, 40: -9.0}, "presence_penalty": 0.3},
        {
            "temperature": 1.0,
            "seed": 10,
            "constraint": Constraint("regex", "(yes|no)( [a-z]{2,9})*"),
            "ignore_eos": False,
        },
    ]
    return [
        (
            tuple(chance.randrange(3, 300) for _ in range(chance.randrange(1, 300))),
            SamplingParams(max_tokens=chance.randrange(2, 60), **{"ignore_eos": True} | kinds[index % len(kinds)]),
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
        while captured.worker.prepare():
            pass
    assert captured.worker.is_warm


def test_constrained_answers_match_and_others_do_not_change() -> None:
    """Red when a mask reaches the device too late, in another row, or forced tokens are lost on the way."""
    built = gpu_worker(MODELS[0], captures=True)
    asked = requests(5, 16)
    for _ in range(2):
        tokens = serve(built, asked, depth=1)
        decode = Tokenizer.from_str(tokenizer_json_of(MODELS[0])).decode
        constrained = [index for index, (_, sampling) in enumerate(asked) if sampling.constraint is not None]
        assert constrained
        for index in constrained:
            text = decode([token for token in tokens[f"{index}", 0] if token != 2])  # the end token
            assert re.fullmatch("(yes|no)?( [a-z]{0,9})*|y|ye|n", text), text
        plain = [request for request in asked if request[1].constraint is None]
        assert all(len(tokens[f"{index}", 0]) for index in range(len(asked)))
        assert len(serve(built, plain, depth=1)) == len(plain)


@contextmanager
def filled(left: int) -> Iterator[None]:
    """The device has `left` bytes within the block."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    hog = torch.empty(torch.cuda.mem_get_info()[0] - left, dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del hog
        torch.cuda.empty_cache()


def test_a_step_that_does_not_fit_on_the_device_is_halved() -> None:
    """Red when memory that runs out while serving fails a request, or changes an answer. The device is filled until a
    step of 4,096 tokens, which takes some 50 MB, fails."""
    built = gpu_worker(MODELS[2], captures=False, max_step_tokens=4096, max_model_len=2048, deterministic=True)
    chance = random.Random(7)
    asked = [
        (tuple(chance.randrange(3, 40_000) for _ in range(1000)), SamplingParams(temperature=0, max_tokens=8))
        for _ in range(8)
    ]
    wanted = serve(built, asked, depth=1, max_step_tokens=4096)
    num_halved = 0

    def counted() -> None:
        nonlocal num_halved
        num_halved += 1

    built.worker._step.shrink = counted
    for left_mb in (64, 48, 40, 32):
        with filled(left_mb << 20):
            assert serve(built, asked, depth=1, max_step_tokens=4096) == wanted
        if num_halved:
            return
    pytest.fail("the steps always fitted")


def test_a_profile_times_every_op_and_the_whole_step() -> None:
    """Red when a profile loses an op, repeats with other counts, or changes what its rows answer afterwards."""
    worker = gpu_worker(MODELS[0], captures=True).worker
    start = RowStart(1, 0, tuple(range(3, 40)), 37, 0, (0, 1), SamplingParams(temperature=0), 0)
    plan = StepPlan(step=0, starts=(start,), rows=(1,), num_tokens=(37,), logits=(LAST_LOGITS,))
    load = StepLoad(num_tokens=37, context=37)
    times = [worker.profile(plan, load) for _ in range(3)]
    assert all(time.whole_s > 0 and all(op.seconds > 0 for op in time.ops) for time in times)
    num_layers = len(define_dummy(MODELS[0]).layers)
    assert [sum(op.op == "paged_attention" for op in time.ops) for time in times] == [num_layers] * 3
    token = worker.submit(plan).wait().tokens
    assert token == gpu_worker(MODELS[0], captures=False).worker.submit(plan).wait().tokens


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
