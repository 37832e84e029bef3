"""The worker around a program that computes nothing: results, overlap, and defects that stay inside one step."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from phloem.core.clock import ManualClock
from phloem.core.errors import RequestFailed
from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, NO_LOGITS, RowStart, StepPlan
from phloem.core.request import Constraint, SamplingParams
from phloem.graph.capture.inputs import StepDims, StepInputs, StepLimits
from phloem.memory.pool.kv import KvPool
from phloem.memory.spec import FullAttention
from phloem.runtime.exec.rows import RowStore
from phloem.runtime.exec.worker import Worker

VOCABULARY = 50


class NextTokenProgram:
    """Finds token + 1 most likely after every token, unless told to break."""

    def __init__(self) -> None:
        self.inputs = StepInputs(StepLimits(max_tokens=16, max_rows=4, max_pages_per_row=4))
        self.defect: Exception | None = None

    def run(self, dims: StepDims) -> torch.Tensor:
        if self.defect is not None:
            raise self.defect
        used = self.inputs.in_use(dims)
        tokens = used["token_ids"][used["logit_rows"].long()].long()
        return torch.nn.functional.one_hot(tokens + 1, VOCABULARY).float() * 9

    def argmax(self, dims: StepDims) -> Sequence[int] | None:
        return None

    def close(self) -> None:
        self.defect = RuntimeError("closed")


def make(overlap_depth: int = 0) -> tuple[Worker, NextTokenProgram]:
    program = NextTokenProgram()
    layers = (FullAttention(num_kv_heads=1, head_dim=16),)
    pool = KvPool(layers=layers, num_pages=8, page_size=4, dtype=torch.float32, device=torch.device("cpu"))
    rows = RowStore(max_rows=4, max_model_len=15, page_size=4, vocab_size=VOCABULARY, end_token_ids=())
    return Worker(program=program, pool=pool, rows=rows, clock=ManualClock(), overlap_depth=overlap_depth), program


def begin(row: int, tokens: tuple[int, ...], **params: object) -> RowStart:
    sampling = SamplingParams(temperature=0, **params)  # type: ignore[arg-type]
    return RowStart(row, row, tokens, len(tokens), 0, (2 * row, 2 * row + 1), sampling, 0)


@pytest.mark.parametrize("overlap_depth", [0, 1])
def test_a_step_knows_the_token_of_the_step_before(overlap_depth: int) -> None:
    """Red when a plan submitted before the last result was read computes anything but the sampled token."""
    worker, _ = make(overlap_depth)
    first = worker.submit(
        StepPlan(step=0, starts=(begin(1, (3, 4, 5)),), rows=(1,), num_tokens=(3,), logits=(LAST_LOGITS,))
    )
    second = worker.submit(StepPlan(step=1, rows=(1,), num_tokens=(1,), logits=(LAST_LOGITS,)))
    assert first.wait().tokens == ((6,),)
    assert second.wait().tokens == ((7,),)
    worker.close()


def test_chunks_sample_only_when_everything_known_is_computed() -> None:
    worker, _ = make()
    start = begin(0, (3, 4, 5, 6), prompt_logprobs=0)
    chunk = StepPlan(step=0, starts=(start,), rows=(0,), num_tokens=(2,), logits=(ALL_LOGITS,))
    result = worker.submit(chunk).wait()
    assert (result.rows, [entry.token_id for entry in result.prompt_logprobs[0][1]]) == ((), [4, 5])
    result = worker.submit(StepPlan(step=1, rows=(0,), num_tokens=(2,), logits=(ALL_LOGITS,))).wait()
    assert (result.tokens, [entry.token_id for entry in result.prompt_logprobs[0][1]]) == (((7,),), [6])


def test_rows_without_logits_report_nothing() -> None:
    worker, _ = make()
    plan = StepPlan(step=0, starts=(begin(0, (3, 4)),), rows=(0,), num_tokens=(1,), logits=(NO_LOGITS,))
    assert worker.submit(plan).wait().rows == ()


def test_a_defect_fails_its_step_and_no_more() -> None:
    """Red when an error in one step ends the worker, or leaves its rows in use."""
    worker, program = make()
    program.defect = IndexError("a bug in sampling")
    plan = StepPlan(step=0, starts=(begin(0, (3, 4)),), rows=(0,), num_tokens=(2,), logits=(LAST_LOGITS,))
    with pytest.raises(RequestFailed, match="IndexError: a bug in sampling"):
        worker.submit(plan).wait()
    program.defect = None
    again = StepPlan(step=1, ends=(0,), starts=(begin(0, (8, 9)),), rows=(0,), num_tokens=(2,), logits=(LAST_LOGITS,))
    assert worker.submit(again).wait().tokens == ((10,),)


def test_an_empty_plan_has_a_result() -> None:
    worker, _ = make()
    assert worker.submit(StepPlan(step=7, ends=(2,))).wait().step == 7


class OddTokens:
    """A matcher that allows odd tokens, and forces 41 and 43 after 39."""

    fault: str | None = None

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.last = 0

    def mask(self) -> np.ndarray:
        self.is_asked.set()
        return np.full(2, 0xAAAAAAAA, dtype=np.uint32).view(np.int32)

    def accept(self, token: int) -> None:
        self.last = token

    def force(self, max_tokens: int) -> list[int]:
        return [41, 43][:max_tokens] if self.last == 39 else []


class OneGrammar:
    """Everybody's matcher is the same."""

    def __init__(self) -> None:
        self.only = OddTokens()

    def matcher(self, constraint: Constraint, generated: Sequence[int] = ()) -> OddTokens:
        return self.only


def test_masks_are_computed_while_the_model_runs() -> None:
    """Red when a step waits for masks before or after its forward pass, a mask is applied to a row without a
    constraint, or forced tokens are not known to the next step."""
    worker, program = make()
    grammars = OneGrammar()
    worker._rows._grammars = grammars
    compute = program.run

    def run(dims: StepDims) -> torch.Tensor:
        assert grammars.only.is_asked.wait(5), "nobody computes the mask meanwhile"
        return compute(dims)

    program.run = run  # type: ignore[method-assign]
    constrained = begin(1, (3, 38), constraint=Constraint("regex", "x"), max_tokens=9)
    plan = StepPlan(
        step=0,
        starts=(begin(0, (5, 6)), constrained),
        rows=(0, 1),
        num_tokens=(2, 2),
        logits=(LAST_LOGITS, LAST_LOGITS),
    )
    result = worker.submit(plan).wait()
    assert result.tokens == ((7,), (39, 41, 43))
    result = worker.submit(StepPlan(step=1, rows=(1,), num_tokens=(3,), logits=(LAST_LOGITS,))).wait()
    assert result.tokens == ((1,),), "44 is even: the lowest of the allowed ones is taken"
    worker.close()


def test_a_late_mask_makes_its_row_wait_and_no_other() -> None:
    """Red when a step waits for a slow mask, the row is sampled without it, or its next step does not begin with the
    same token: then the scheduler, which is told so, would compute another one."""
    worker, _ = make()
    grammars = OneGrammar()
    slow, may_go = grammars.only.mask, threading.Event()

    def mask() -> np.ndarray:
        assert may_go.wait(10)
        return slow()

    grammars.only.mask = mask  # type: ignore[method-assign]
    worker._rows._grammars = grammars
    both = StepPlan(
        step=0,
        starts=(begin(0, (5, 6)), begin(1, (3, 38), constraint=Constraint("regex", "x"), max_tokens=9)),
        rows=(0, 1),
        num_tokens=(2, 2),
        logits=(LAST_LOGITS, LAST_LOGITS),
    )
    result = worker.submit(both).wait()
    assert (result.rows, result.tokens, result.late, result.failed) == ((0,), ((7,),), (1,), ())
    again = StepPlan(step=1, rows=(0, 1), num_tokens=(1, 1), logits=(LAST_LOGITS, LAST_LOGITS))
    result = worker.submit(again).wait()
    assert (result.rows, result.late) == ((0,), (1,))
    may_go.set()
    alone = StepPlan(step=2, rows=(1,), num_tokens=(1,), logits=(LAST_LOGITS,))
    result = worker.submit(alone).wait()
    assert (result.rows, result.tokens, result.late) == ((1,), ((39, 41, 43),), ())
    worker.close()


def test_a_matcher_that_fails_fails_its_row_alone() -> None:
    """Red when a grammar that cannot go on fails a whole step, or its row goes on without it."""
    worker, _ = make()
    grammars = OneGrammar()
    grammars.only.fault = "too complex"
    worker._rows._grammars = grammars
    starts = (begin(0, (5, 6)), begin(1, (3, 38), constraint=Constraint("regex", "x")))
    plan = StepPlan(step=0, starts=starts, rows=(0, 1), num_tokens=(2, 2), logits=(LAST_LOGITS, LAST_LOGITS))
    result = worker.submit(plan).wait()
    assert (result.rows, result.tokens) == ((0,), ((7,),))
    assert result.failed == ((1, "the constraint cannot be followed any further: too complex"),)
    worker.close()
