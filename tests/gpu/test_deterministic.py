"""Deterministic mode: the same request gives the same bits, whatever runs beside it and however it is cut."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch

from phloem.core.clock import ManualClock
from phloem.core.request import SamplingParams
from phloem.core.wire import Finished, Stats, Submit, Tokens
from phloem.graph.ops.fp8 import quantize_rows
from phloem.runtime.loop import Loop
from phloem.runtime.mailbox import Mailbox
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler
from tests.kernels.triton.attention_cases import Step, make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(4096, 1024), (1024, 3072), (960, 576), (9728, 2560), (151_936, 1024)]  # outputs and inputs of a linear
LIMITS = {"page_size": 32, "max_running": 16, "max_step_tokens": 1024, "max_model_len": 2048}
PROBE = SamplingParams(temperature=0.9, top_p=0.95, seed=3, max_tokens=24, ignore_eos=True, logprobs=2)
LOADS = {"dummy:qwen3-tiny": 200, "dummy:qwen3-0.6b": 20}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
def test_products_of_a_row_are_the_same_in_every_tile(num_outputs: int, num_inputs: int, dtype: torch.dtype) -> None:
    """Red if a tile, or the place of a row in it, changes the order in which a product is summed."""
    from phloem.kernels.triton.invariant import TILES, linear, linear_fp8

    torch.manual_seed(num_inputs)
    x = torch.randn(300, num_inputs, device="cuda", dtype=dtype)
    weight = torch.randn(num_outputs, num_inputs, device="cuda", dtype=dtype) / num_inputs**0.5
    numbers, scale = quantize_rows(weight)
    want, want_fp8 = linear(x, weight), linear_fp8(x, numbers, scale)
    for tile in (None, *TILES):
        for rows in (slice(0, 1), slice(7, 8), slice(100, 163), slice(63, 300)):
            assert torch.equal(linear(x[rows], weight, tile=tile), want[rows]), tile
            assert torch.equal(linear_fp8(x[rows], numbers, scale, tile=tile), want_fp8[rows]), tile


def alone(step: Step, row: int, token: int) -> torch.Tensor:
    """One token of one row, computed as a row of one query."""
    start, context = step.meta["query_start"].tolist(), step.meta["context_len"].tolist()
    length = context[row] - (start[row + 1] - start[row]) + 1 + token
    meta = step.meta | {
        "query_start": torch.tensor([0, 1], device="cuda", dtype=torch.int32),
        "context_len": torch.tensor([length], device="cuda", dtype=torch.int32),
        "block_table": step.meta["block_table"][row : row + 1],
    }
    at = start[row] + token
    one = replace(step, q=step.q[at : at + 1], meta=meta)
    return one.run(num_rows=1, num_tokens=1, num_decode_rows=1, max_query_len=1, deterministic=True)[0]


@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize(("heads", "head_dim"), [((16, 8), 128), ((9, 3), 64), ((10, 2), 128), ((4, 2), 256)])
def test_attention_of_a_token_alone_and_in_a_chunk(
    heads: tuple[int, int], head_dim: int, window: int | None, cache_dtype: torch.dtype | None
) -> None:
    """Red if decoding and prompts sum keys in other pieces or another order."""
    kind = {"heads": heads, "head_dim": head_dim, "dtype": torch.bfloat16, "device": "cuda", "page_size": 32}
    queries = [1, 1, 300, 777, 70]
    step = make_step([900, 2500, 2300, 777, 1100], queries, window=window, cache_dtype=cache_dtype, **kind)
    step.check(deterministic=True)
    whole = step.run(deterministic=True)
    start = step.meta["query_start"].tolist()
    for row, count in enumerate(queries):
        for token in sorted({0, 1, count // 2, count - 2, count - 1} & set(range(count))):
            assert torch.equal(alone(step, row, token), whole[start[row] + token]), (row, token)


@dataclass(frozen=True)
class Load:
    """What runs beside the request in question, and how the scheduler cuts it all."""

    others: list[tuple[tuple[int, ...], SamplingParams]]
    place: int  # of the request among them
    late: int  # turns after which those behind it arrive
    num_pages: int
    max_step_tokens: int
    max_rows: int
    depth: int


def random_load(chance: random.Random, probe: tuple[int, ...]) -> Load:
    count = chance.randrange(0, 16)
    others = []
    for _ in range(count):
        shared = probe[: chance.randrange(len(probe))] if chance.random() < 0.3 else ()
        own = tuple(chance.randrange(3, 300) for _ in range(chance.randrange(1, 200)))
        others.append((shared + own, SamplingParams(max_tokens=chance.choice((1, 30, 150)), ignore_eos=True)))
    return Load(
        others=others,
        place=chance.randrange(count + 1),
        late=chance.randrange(0, 12),
        num_pages=chance.choice((40, 48, 64, 400)),
        max_step_tokens=chance.choice((33, 100, 257, 1024)),
        max_rows=chance.randrange(1, 17),
        depth=chance.randrange(2),
    )


def answer(built, probe: tuple[int, ...], load: Load):
    """Tokens and log-probabilities of the request under a load, and the engine's counters."""
    settings = SchedulerSettings(
        num_pages=min(load.num_pages, built.num_pages),
        page_size=LIMITS["page_size"],
        max_rows=load.max_rows,
        max_step_tokens=load.max_step_tokens,
        max_model_len=built.max_model_len,
    )
    inbox, outbox, scheduler = Mailbox(), Mailbox(), make_scheduler(settings)
    loop = Loop(
        scheduler=scheduler, worker=built.worker, inbox=inbox, outbox=outbox, clock=ManualClock(), depth=load.depth
    )
    submits = [Submit(f"{index}", *other) for index, other in enumerate(load.others)]
    submits.insert(load.place, Submit("probe", probe, PROBE))
    inbox.send(submits[: load.place + 1])
    ids, logprobs, num_finished, turns = [], [], 0, 0
    while num_finished < len(submits):
        if turns == load.late:
            inbox.send(submits[load.place + 1 :])
        turns += 1
        loop.turn()
        for event in outbox.poll(0.0):
            num_finished += isinstance(event, Finished)
            if isinstance(event, Tokens) and event.request_id == "probe":
                ids += event.token_ids
                logprobs += [(each.token_id, each.logprob, each.top) for each in event.logprobs]
        assert turns < 5000, "it does not end"
    while loop.turn():
        outbox.poll(0.0)
    return (ids, logprobs), scheduler.stats(0.0)


@pytest.mark.parametrize("model", LOADS)
def test_same_bits_under_any_load(model: str) -> None:
    """Red if what neighbours, chunks, cached prefixes or preemptions decide reaches a request's numbers."""
    from tests.gpu.test_engine import gpu_worker

    changes = {"max_step_tokens": LIMITS["max_step_tokens"], "max_model_len": LIMITS["max_model_len"]}
    built = gpu_worker(model, captures=True, deterministic=True, **changes)
    chance = random.Random(11)
    probe = tuple(chance.randrange(3, 300) for _ in range(1100))
    quiet = Load(others=[], place=0, late=0, num_pages=400, max_step_tokens=1024, max_rows=16, depth=0)
    wanted, _ = answer(built, probe, quiet)
    assert len(wanted[0]) == len(wanted[1]) == PROBE.max_tokens
    totals: list[Stats] = []
    for number in range(LOADS[model]):
        load = random_load(chance, probe)
        got, stats = answer(built, probe, load)
        assert got == wanted, f"load {number}: {load}"
        totals.append(stats)
    assert sum(stats.num_preemptions for stats in totals) > 0, "nobody was preempted"
    assert sum(stats.cached_tokens for stats in totals) > 0, "no prefix was shared"
