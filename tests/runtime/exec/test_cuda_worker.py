"""The device worker against the CPU worker, plan by plan, with the host as the device; and what it does in trouble."""

from __future__ import annotations

import random

import pytest
import torch
from tests.runtime.exec import twins

from phloem.core.errors import RequestFailed
from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, RowStart, StepPlan
from phloem.core.request import Constraint, SamplingParams
from phloem.launch.text import dummy_vocab_size, tokenizer_json_of
from phloem.runtime.exec.cuda_worker import halves
from phloem.runtime.grammar.grammars import Grammars
from phloem.runtime.grammar.vocabulary import Vocabulary
from phloem.runtime.sched.build import SchedulerSettings

SETTINGS = SchedulerSettings(
    num_pages=64, page_size=twins.PAGE_SIZE, max_rows=6, max_step_tokens=48, max_model_len=160, eos_token_ids=(2,),
    policy="fcfs",
)  # fmt: skip


def settings(**changes) -> SchedulerSettings:
    return SchedulerSettings(**{name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__} | changes)


def prompts(seed: int, lengths: list[int]) -> list[tuple[int, ...]]:
    chance = random.Random(seed)
    return [tuple(chance.randrange(3, 320) for _ in range(length)) for length in lengths]


def twin(chosen: SchedulerSettings) -> object:
    return twins.TwinWorker(twins.host_device_worker(chosen), twins.cpu_worker(chosen))


@pytest.mark.parametrize("depth", [0, 1])
def test_both_workers_agree_on_every_step(depth: int) -> None:
    """Starts, chunks longer than a step, decode rows beside them, rows that end early and late. Red when packing, the
    mirror's counts or the order of rows differ from what the plan says, or a step under overlap misses a token."""
    kinds = [
        SamplingParams(temperature=0, max_tokens=9, ignore_eos=True),
        SamplingParams(temperature=0.8, max_tokens=17, seed=5, ignore_eos=True),
        SamplingParams(temperature=1.3, top_k=20, top_p=0.9, max_tokens=5, seed=1 << 40),
        SamplingParams(temperature=1.0, min_p=0.02, max_tokens=12, seed=7),
    ]
    requests = list(zip(prompts(1, [1, 16, 17, 70, 5, 33, 90, 2, 48, 49]), kinds * 3))
    worker = twin(SETTINGS)
    tokens, _ = twins.run(worker, SETTINGS, requests, depth=depth)
    assert [len(tokens[f"{index}", 0]) for index in range(2)] == [9, 17]
    mixed = [plan for plan in worker.plans if 1 in plan.num_tokens and max(plan.num_tokens, default=0) > 1]
    assert mixed, "some step has decode rows beside a chunk"


@pytest.mark.parametrize("depth", [0, 1])
def test_preempted_rows_go_on_where_they_were(depth: int) -> None:
    """Red when a row that starts again with its generated tokens draws with another counter, or keeps old counts."""
    few = settings(num_pages=13)
    requests = [
        (prompt, SamplingParams(temperature=0.7, seed=3, max_tokens=50, ignore_eos=True))
        for prompt in prompts(2, [20, 25, 30, 35])
    ]
    tokens, stats = twins.run(twin(few), few, requests, depth=depth)
    assert stats.num_preemptions > 0
    assert {len(each) for each in tokens.values()} == {50}


@pytest.mark.parametrize("depth", [0, 1])
def test_shared_prefixes_copied_pages_and_several_choices(depth: int) -> None:
    """Red when a page is copied after the step that needs it, or a group names rows by anything but the batch."""
    (stem,) = prompts(3, [8 * twins.PAGE_SIZE + 5])
    requests = [(stem, SamplingParams(temperature=0.9, seed=11, n=3, max_tokens=8, ignore_eos=True))]
    requests += [(stem + tail, SamplingParams(temperature=0, max_tokens=6)) for tail in prompts(4, [3, 9])]
    worker = twin(SETTINGS)
    tokens, stats = twins.run(worker, SETTINGS, requests, depth=depth)
    assert stats.cached_tokens > 0
    assert any(plan.copies for plan in worker.plans)
    assert any(plan.shared for plan in worker.plans)
    assert len({tuple(tokens["0", choice]) for choice in range(3)}) == 3


@pytest.mark.parametrize("depth", [0, 1])
def test_constrained_rows_beside_others(depth: int) -> None:
    """Red when forced tokens do not reach the device in order, the mirror counts them wrongly, or a mask is not applied
    there: each result is compared with the CPU worker's, and the texts with their expressions."""
    grammars = Grammars(lambda: Vocabulary(tokenizer_json_of(twins.MODEL), dummy_vocab_size(twins.MODEL), (2,)))
    expression = Constraint("regex", "(yes, certainly|no, never)([ab]{3} and then [01]{2})?")
    kinds = [
        SamplingParams(temperature=1.2, seed=4, max_tokens=60, constraint=expression),
        SamplingParams(temperature=0.8, seed=5, max_tokens=20, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=7, constraint=expression),
        SamplingParams(temperature=1.2, seed=4, max_tokens=60, constraint=expression, logprobs=1),
    ]
    requests = list(zip(prompts(6, [30, 17, 5, 30]), kinds))
    requests[3] = (requests[0][0], kinds[3])
    few = settings(num_pages=14)
    worker = twins.TwinWorker(
        twins.host_device_worker(few, grammars=grammars), twins.cpu_worker(few, grammars=grammars)
    )
    tokens, _ = twins.run(worker, few, requests, depth=depth)
    assert tokens["0", 0] == tokens["3", 0], "taken at once or one by one"
    assert tokens["0", 0][-1] == 2
    assert len(tokens["1", 0]) == 20
    assert len(tokens["2", 0]) == 7
    assert max(max(plan.num_tokens, default=0) for plan in worker.plans[3:]) > 3, "forced tokens come several at once"


@pytest.mark.parametrize("depth", [0, 1])
def test_adjusted_and_reported_rows_beside_plain_ones(depth: int) -> None:
    """Red when what a row lists does not reach the device, a report is read from another row's line or after its logits
    were changed, or a prompt is scored by the wrong lines."""
    kinds = [
        SamplingParams(temperature=0, logprobs=3, max_tokens=8),
        SamplingParams(temperature=0.8, seed=5, max_tokens=8, ignore_eos=True),
        SamplingParams(temperature=0.8, seed=6, repetition_penalty=1.3, frequency_penalty=0.4, max_tokens=8),
        SamplingParams(temperature=0, prompt_logprobs=2, max_tokens=4),
        SamplingParams(temperature=1.0, seed=9, logit_bias={7: 5.0, 2: 9.0}, min_tokens=4, max_tokens=8, logprobs=2),
        SamplingParams(temperature=0, max_tokens=8),
    ]
    requests = list(zip(prompts(5, [10, 20, 30, 60, 5, 44]), kinds))
    twins.run(twin(SETTINGS), SETTINGS, requests, depth=depth)


class Scarce:
    """Runs out of memory in steps of more than `most` tokens, after the row kernels have run."""

    def __init__(self, worker, most: int) -> None:
        self.step, self.most = worker._step, most
        self.launch, self.num_refused = worker._step._steps.run, 0
        worker._step._steps.run = self.run

    def run(self, bucket):
        output = self.launch(bucket)
        if bucket.shape.num_tokens > self.most:
            self.num_refused += 1
            raise torch.OutOfMemoryError("a test")
        return output


def test_a_step_that_does_not_fit_is_run_in_parts() -> None:
    """Red when memory that runs out fails a request, or the second attempt counts or appends anything twice."""
    requests = [
        (prompt, SamplingParams(temperature=0.7, seed=3, max_tokens=6, ignore_eos=True))
        for prompt in prompts(6, [100, 90, 7, 120])
    ]
    chosen = settings(max_step_tokens=200)
    ours = twins.host_device_worker(chosen)
    scarce = Scarce(ours, 64)
    twins.run(twins.TwinWorker(ours, twins.cpu_worker(chosen)), chosen, requests, depth=1)
    assert scarce.num_refused > 0


def test_a_step_that_never_fits_fails_its_requests_only() -> None:
    """Red when the engine dies of it, or the next step does not work."""
    ours = twins.host_device_worker(SETTINGS)
    scarce = Scarce(ours, 0)
    start = RowStart(1, 1, (5, 6, 7), 3, 0, (0,), SamplingParams(temperature=0), 0)
    plan = StepPlan(step=0, starts=(start,), rows=(1,), num_tokens=(3,), logits=(LAST_LOGITS,))
    with pytest.raises(RequestFailed, match="OutOfMemoryError"):
        ours.submit(plan)
    scarce.most = 1000
    again = StepPlan(step=1, ends=(1,), starts=(start,), rows=(1,), num_tokens=(3,), logits=(LAST_LOGITS,))
    assert ours.submit(again).wait().rows == (1,)


def test_rows_whose_logits_are_not_finite_fail_alone() -> None:
    """Red when one row's NaN fails the step, or its neighbour's token is lost."""
    ours = twins.host_device_worker(SETTINGS)
    program = ours._step._program
    run = program.run

    def poisoned(inputs, shape):
        logits = run(inputs, shape)
        logits[0] = float("nan")
        return logits

    program.run = poisoned
    starts = tuple(RowStart(row, row, (5, 6, row), 3, 0, (row,), SamplingParams(temperature=0), 0) for row in (2, 4))
    plan = StepPlan(step=0, starts=starts, rows=(2, 4), num_tokens=(3, 3), logits=(LAST_LOGITS, LAST_LOGITS))
    result = ours.submit(plan).wait()
    assert (result.rows, [row for row, _ in result.failed]) == ((4,), [2])


def test_halves_cover_the_plan() -> None:
    """Red when a part loses tokens, or a chunk's first part asks for the logits of its last token."""
    one = StepPlan(step=3, rows=(4,), num_tokens=(7,), logits=(LAST_LOGITS,))
    first, second = halves(one)
    assert (first.num_tokens, first.logits, second.num_tokens, second.logits) == ((3,), (0,), (4,), (LAST_LOGITS,))
    scored = StepPlan(step=3, rows=(4,), num_tokens=(2,), logits=(ALL_LOGITS,))
    assert [part.logits for part in halves(scored)] == [(ALL_LOGITS,), (ALL_LOGITS,)]
    assert halves(StepPlan(step=3, rows=(4,), num_tokens=(1,), logits=(LAST_LOGITS,))) is None


def test_an_empty_plan_has_a_result() -> None:
    assert twins.host_device_worker(SETTINGS).submit(StepPlan(step=7, ends=(2,))).wait().step == 7


@pytest.mark.parametrize(
    ("error", "seen"), [(IndexError("a bug"), RequestFailed), (torch.AcceleratorError("lost"), torch.AcceleratorError)]
)
def test_a_defect_fails_its_step_and_a_lost_device_the_engine(error: Exception, seen: type[Exception]) -> None:
    """Red when a bug in one step ends the engine, or an engine whose device is gone goes on failing requests."""
    ours = twins.host_device_worker(SETTINGS)

    def broken(bucket):
        raise error

    ours._step._steps.run = broken
    start = RowStart(1, 1, (5, 6, 7), 3, 0, (0,), SamplingParams(temperature=0), 0)
    with pytest.raises(seen):
        ours.submit(StepPlan(step=0, starts=(start,), rows=(1,), num_tokens=(3,), logits=(LAST_LOGITS,)))
