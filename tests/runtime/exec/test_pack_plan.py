"""From plans to packed steps: batch order, logit lines, counts, groups."""

from __future__ import annotations

import numpy as np

from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, NO_LOGITS, RowStart, SharedPrefix, StepPlan
from phloem.core.request import SamplingParams
from phloem.kernels.triton.packed import START_COMPUTED, START_KNOWN, START_ROW
from phloem.runtime.exec.device_rows import NOT_REPORTED, RowMirror
from phloem.runtime.exec.pack_plan import NOBODY, pack_plan


def start(row: int, known: int, computed: int = 0, pages: tuple[int, ...] = (1, 2), **sampling) -> RowStart:
    return RowStart(row, row, tuple(range(known)), known, computed, pages, SamplingParams(**sampling), 7)


def packed(plan: StepPlan, mirror: RowMirror | None = None):
    mirror = mirror or RowMirror(max_rows=8, vocab_size=100, end_token_ids=())
    return (*pack_plan(plan, mirror, mirror.apply(plan)), mirror)


def test_rows_with_one_token_come_first_and_results_in_the_plans_order() -> None:
    """Red when attention would take a chunk for a decode row, or rows are reported in another order than planned."""
    plan = StepPlan(
        step=0,
        starts=(start(5, 9), start(2, 4, 3), start(6, 30), start(1, 8, 7)),
        rows=(5, 2, 6, 1),
        num_tokens=(9, 1, 20, 1),
        logits=(LAST_LOGITS, LAST_LOGITS, NO_LOGITS, LAST_LOGITS),
    )
    step, batch, _ = packed(plan)
    assert step.batch_rows.tolist() == [2, 1, 5, 6]
    assert step.query_start.tolist() == [0, 1, 2, 11, 31]
    assert step.line_tokens.tolist() == [0, 1, 10]
    assert step.line_rows.tolist() == [2, 1, 5]
    assert batch.rows[batch.draws].tolist() == [5, 2, 1]
    assert batch.lines[batch.draws].tolist() == [2, 0, 1]
    sizes = batch.sizes
    assert (sizes.num_rows, sizes.num_tokens, sizes.num_logits, sizes.num_decode_rows) == (4, 31, 3, 2)


def test_the_spare_row_fills_up_the_rows_with_one_token() -> None:
    """Red when mixed steps have as many shapes as there are numbers of decode rows, or the spare row does anything."""
    starts = tuple(start(row, 8, 7) for row in range(5)) + (start(5, 20), start(6, 9))
    plan = StepPlan(
        step=0, starts=starts, rows=(5, 0, 1, 2, 3, 4, 6), num_tokens=(20, 1, 1, 1, 1, 1, 9), logits=(1,) * 7
    )
    step, batch, mirror = packed(plan)
    assert step.batch_rows.tolist() == [0, 1, 2, 3, 4, 8, 8, 8, 5, 6]
    assert step.query_start.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 25, 34]
    assert (batch.sizes.num_rows, batch.sizes.num_decode_rows) == (10, 8)
    assert step.line_tokens.tolist() == [0, 1, 2, 3, 4, 24, 33]
    assert batch.rows[batch.draws].tolist() == [5, 0, 1, 2, 3, 4, 6]
    mirror.advance(batch.rows, batch.counts)
    assert mirror.computed.tolist() == [8, 8, 8, 8, 8, 20, 9, 0, 0]


def test_only_rows_that_draw_have_a_line_of_their_own() -> None:
    """Red when the device appends a token to a row that is not complete, or at each line of a scored prompt."""
    plan = StepPlan(
        step=0,
        starts=(start(0, 3, prompt_logprobs=1), start(1, 5), start(2, 2, logprobs=0)),
        rows=(0, 1, 2),
        num_tokens=(3, 4, 2),
        logits=(ALL_LOGITS, NO_LOGITS, LAST_LOGITS),
    )
    step, batch, _ = packed(plan)
    assert step.line_tokens.tolist() == [0, 1, 2, 8]
    assert step.line_rows.tolist() == [NOBODY, NOBODY, 0, 2]
    assert batch.lines.tolist() == [2, NOBODY, 3]
    assert batch.draws.tolist() == [0, 2]
    assert batch.num_top.tolist() == [NOT_REPORTED, 0]
    assert batch.sizes.reports


def test_groups_name_rows_of_the_batch() -> None:
    """Red when a group names device rows, or the plan's order instead of the batch's."""
    starts = tuple(start(row, 40, 39 if row != 4 else 30, tuple(range(10))) for row in (4, 1, 6))
    plan = StepPlan(
        step=0, starts=starts, rows=(4, 1, 6), num_tokens=(10, 1, 1), logits=(LAST_LOGITS,) * 3,
        shared=(SharedPrefix((1, 4, 6), 8),),
    )  # fmt: skip
    step, batch, _ = packed(plan)
    assert step.batch_rows.tolist() == [1, 6, 4]
    assert (step.shared_start.tolist(), step.shared_rows.tolist()) == ([0, 3], [0, 2, 1])
    assert step.shared_pages.tolist() == [8]
    assert (batch.sizes.num_shared, batch.sizes.max_group_rows) == (1, 3)


def test_pages_are_numbered_where_the_row_stands() -> None:
    """Red when added pages overwrite those a row has."""
    mirror = RowMirror(max_rows=8, vocab_size=100, end_token_ids=())
    mirror.apply(StepPlan(step=0, starts=(start(3, 5, pages=(7, 8)),)))
    changes = mirror.apply(StepPlan(step=1, new_pages=((3, (9, 4)),)))
    assert changes.pages.tolist() == [[3, 2, 9], [3, 3, 4]]
    assert mirror.apply(StepPlan(step=2, starts=(start(3, 5, pages=(1,)),))).pages.tolist() == [[3, 0, 1]]


def test_a_restart_says_what_the_mirror_counts() -> None:
    """Red when a step that is run again after memory ran out starts from other counts than before it."""
    mirror = RowMirror(max_rows=8, vocab_size=100, end_token_ids=())
    mirror.apply(StepPlan(step=0, starts=(start(3, 5),)))
    mirror.advance(np.array([3]), np.array([5]))
    mirror.append(np.array([3]))
    (words,) = mirror.restarts(np.array([3])).tolist()
    assert (words[START_ROW], words[START_KNOWN], words[START_COMPUTED]) == (3, 6, 5)
