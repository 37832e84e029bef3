"""From plans to static inputs: positions, slots, context lengths and the rows that want logits."""

from __future__ import annotations

import numpy as np

from phloem.core.plan import ALL_LOGITS, LAST_LOGITS, NO_LOGITS, RowStart, SharedPrefix, StepPlan
from phloem.core.request import SamplingParams
from phloem.graph.capture.inputs import StepDims, StepInputs, StepLimits
from phloem.runtime.exec.inputs import fill_inputs, logit_rows
from phloem.runtime.exec.rows import RowStore

PAGE_SIZE = 4


def start(row: int, tokens: range, computed: int, pages: tuple[int, ...]) -> RowStart:
    return RowStart(
        row=row,
        sequence_id=row,
        token_ids=tuple(tokens),
        num_prompt_tokens=len(tokens),
        num_computed=computed,
        pages=pages,
        sampling=SamplingParams(),
        seed=0,
    )


def filled(plan: StepPlan) -> tuple[StepDims, StepInputs]:
    rows = RowStore(max_rows=8, max_model_len=40, page_size=PAGE_SIZE, vocab_size=100, end_token_ids=())
    inputs = StepInputs(StepLimits(max_tokens=16, max_rows=8, max_pages_per_row=11))
    rows.apply(plan)
    return fill_inputs(plan=plan, rows=rows, inputs=inputs), inputs


def test_a_cached_prefix_and_a_fresh_chunk_in_one_step() -> None:
    plan = StepPlan(
        step=0,
        starts=(start(5, range(10, 17), 5, (3, 1)), start(2, range(30, 40), 0, (7, 0, 9))),
        rows=(5, 2),
        num_tokens=(2, 6),
        logits=(LAST_LOGITS, NO_LOGITS),
    )
    dims, inputs = filled(plan)
    assert dims == StepDims(num_tokens=8, num_rows=2, num_logits=1, num_shared=0)
    used = {name: tensor.tolist() for name, tensor in inputs.in_use(dims).items()}
    assert used["token_ids"] == [15, 16, 30, 31, 32, 33, 34, 35]
    assert used["positions"] == [5, 6, 0, 1, 2, 3, 4, 5]
    assert used["slots"] == [1 * 4 + 1, 1 * 4 + 2, 28, 29, 30, 31, 0, 1]
    assert used["query_start"] == [0, 2, 8]
    assert used["context_len"] == [7, 6]
    assert [row[:3] for row in used["block_table"]] == [[3, 1, 0], [7, 0, 9]]
    assert used["logit_rows"] == [1]


def test_shared_groups_become_indices_into_the_batch() -> None:
    starts = tuple(start(row, range(6), 5, (0, row)) for row in (4, 1, 6))
    plan = StepPlan(
        step=0,
        starts=starts,
        rows=(4, 1, 6),
        num_tokens=(1, 1, 1),
        logits=(LAST_LOGITS,) * 3,
        shared=(SharedPrefix(rows=(6, 4), num_pages=1),),
    )
    dims, inputs = filled(plan)
    assert dims.num_shared == 1
    assert inputs.array("shared_start")[:2].tolist() == [0, 2]
    assert inputs.array("shared_rows")[:2].tolist() == [2, 0]
    assert inputs.array("shared_pages")[:1].tolist() == [1]


def test_rows_that_want_logits() -> None:
    begins = np.asarray([0, 3, 4, 8], dtype=np.int32)
    assert logit_rows((LAST_LOGITS, LAST_LOGITS, LAST_LOGITS), begins).tolist() == [2, 3, 7]
    assert logit_rows((NO_LOGITS, LAST_LOGITS, NO_LOGITS), begins).tolist() == [3]
    assert logit_rows((ALL_LOGITS, NO_LOGITS, LAST_LOGITS), begins).tolist() == [0, 1, 2, 7]
    assert logit_rows((NO_LOGITS, NO_LOGITS, NO_LOGITS), begins).tolist() == []
