"""From a plan and the row store to the static inputs of the step program."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from phloem.core.plan import ALL_LOGITS, NO_LOGITS, StepPlan
from phloem.graph.capture.inputs import StepDims, StepInputs
from phloem.runtime.exec.rows import RowStore

IntArray = npt.NDArray[np.int32]


def fill_inputs(*, plan: StepPlan, rows: RowStore, inputs: StepInputs) -> StepDims:
    """Write the step's inputs and return its sizes. The plan is already applied to `rows`; nothing is computed yet."""
    row = np.asarray(plan.rows, dtype=np.int32)  # [R]
    count = np.asarray(plan.num_tokens, dtype=np.int32)  # [R]
    start = _starts(count)  # [R + 1]
    num_rows, num_tokens = len(row), int(start[-1])
    computed = rows.computed[row]  # [R]

    row_of_token = np.repeat(row, count)  # [T]
    position = np.repeat(computed - start[:-1], count) + np.arange(num_tokens, dtype=np.int32)  # [T]
    page = rows.block_table[row_of_token, position // rows.page_size]  # [T]
    inputs.array("token_ids")[:num_tokens] = rows.tokens[row_of_token, position]
    inputs.array("positions")[:num_tokens] = position
    inputs.array("slots")[:num_tokens] = page * rows.page_size + position % rows.page_size

    inputs.array("query_start")[: num_rows + 1] = start
    inputs.array("context_len")[:num_rows] = computed + count
    max_pages = int(rows.num_pages[row].max())
    inputs.array("block_table")[:num_rows, :max_pages] = rows.block_table[row, :max_pages]

    wanted = logit_rows(plan.logits, start)
    inputs.array("logit_rows")[: len(wanted)] = wanted
    num_shared = _fill_shared(plan, inputs)
    return StepDims(num_tokens=num_tokens, num_rows=num_rows, num_logits=len(wanted), num_shared=num_shared)


def logit_rows(logits: tuple[int, ...], start: IntArray) -> IntArray:
    """Tokens of the step that reach the LM head: the last of a row that samples, all of one that scores its prompt."""
    if ALL_LOGITS not in logits:
        last: IntArray = start[1:] - 1
        return last if NO_LOGITS not in logits else last[np.asarray(logits) != NO_LOGITS]
    parts = [
        np.arange(start[index] if flag == ALL_LOGITS else start[index + 1] - 1, start[index + 1], dtype=np.int32)
        for index, flag in enumerate(logits)
        if flag != NO_LOGITS
    ]
    return np.concatenate(parts)


def _starts(count: IntArray) -> IntArray:
    start = np.zeros(len(count) + 1, dtype=np.int32)
    np.cumsum(count, out=start[1:])
    return start


def _fill_shared(plan: StepPlan, inputs: StepInputs) -> int:
    """Groups of rows below one shared prefix, as indices into this step's batch."""
    if not plan.shared:
        inputs.array("shared_start")[0] = 0
        return 0
    index_of_row = {row: index for index, row in enumerate(plan.rows)}
    members = [[index_of_row[row] for row in group.rows] for group in plan.shared]
    start = _starts(np.asarray([len(group) for group in members], dtype=np.int32))
    inputs.array("shared_start")[: len(start)] = start
    inputs.array("shared_rows")[: start[-1]] = np.concatenate(members)
    inputs.array("shared_pages")[: len(members)] = [group.num_pages for group in plan.shared]
    return len(members)
