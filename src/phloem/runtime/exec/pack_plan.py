"""From a plan and the row mirror to one packed step, and what the host must remember to read its result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phloem.core.plan import ALL_LOGITS, NO_LOGITS, StepPlan
from phloem.graph.capture.buckets import StepSizes, round_rows
from phloem.kernels.triton.packed import PackedStep
from phloem.runtime.exec.device_rows import NOT_REPORTED, Changes, IntArray, RowMirror

NOBODY = -1
"""Instead of a device row: a logit line that is only scored, on the host, or read by nobody."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step in batch order: rows with one token first, otherwise as in the plan. Where others follow, the spare row
    fills up those with one token to a number that recurs; it has none.

    `rows`, `counts` [R] are device rows and their tokens; `lines` [R] the last logit line of each (NOBODY: none) and
    `draws` [n] are the indices, in plan order, of the rows of which all is computed then, so that a token is drawn;
    `num_top` [n] how many alternatives each of them reports.
    """

    rows: IntArray
    counts: IntArray
    lines: IntArray
    draws: npt.NDArray[np.intp]
    num_top: IntArray
    sizes: StepSizes


def pack_plan(plan: StepPlan, mirror: RowMirror, changes: Changes) -> tuple[PackedStep, Batch]:
    """The step of a plan that is already applied to `mirror`; nothing of it is counted as computed yet."""
    rows, counts = np.asarray(plan.rows, dtype=np.int32), np.asarray(plan.num_tokens, dtype=np.int32)
    flags = np.asarray(plan.logits, dtype=np.int32)
    num_decode_rows = int(np.count_nonzero(counts == 1))
    order = None
    if num_decode_rows < len(rows):
        num_spare = round_rows(num_decode_rows) - num_decode_rows
        order = np.argsort(counts > 1, kind="stable")
        order = np.insert(order, num_decode_rows, np.full(num_spare, len(rows)))
        rows, counts, flags = (
            np.append(each, spare)[order] for each, spare in ((rows, mirror.spare_row), (counts, 0), (flags, NO_LOGITS))
        )
        num_decode_rows += num_spare
    query_start = starts_of(counts)
    num_lines = np.where(flags == ALL_LOGITS, counts, flags != NO_LOGITS).astype(np.int32)
    line_start = starts_of(num_lines)
    lines = np.where(num_lines > 0, line_start[1:] - 1, NOBODY).astype(np.int32)
    ends = mirror.computed[rows] + counts
    draws = np.flatnonzero((ends == mirror.known[rows]) & (num_lines > 0))
    drawing = rows[draws]
    line_rows = np.full(int(line_start[-1]), NOBODY, dtype=np.int32)
    line_rows[lines[draws]] = drawing
    groups = _shared(plan, rows)
    step = PackedStep(
        batch_rows=rows,
        query_start=query_start,
        line_tokens=_line_tokens(query_start, num_lines, line_start),
        line_rows=line_rows,
        shared_start=groups[0],
        shared_rows=groups[1],
        shared_pages=groups[2],
        starts=changes.starts,
        pages=changes.pages,
    )
    sizes = StepSizes(
        num_rows=len(rows),
        num_tokens=int(query_start[-1]),
        num_logits=len(line_rows),
        num_decode_rows=num_decode_rows,
        num_shared=len(groups[2]),
        max_group_rows=int(np.diff(groups[0]).max()) if len(groups[2]) else 0,
        adjusts=bool(mirror.adjusts[drawing].any()),
        truncates=bool(mirror.truncates[drawing].any()),
        reports=bool((mirror.num_top[drawing] != NOT_REPORTED).any()),
    )
    in_plan_order = draws if order is None else draws[np.argsort(order[draws])]
    return step, Batch(rows, counts, lines, in_plan_order, mirror.num_top[rows[in_plan_order]], sizes)


def starts_of(counts: IntArray) -> IntArray:
    """0 and the running sums: [n + 1]."""
    starts = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    return starts


def _line_tokens(query_start: IntArray, num_lines: IntArray, line_start: IntArray) -> IntArray:
    """The token behind each logit line: the last ones of every row."""
    if num_lines.max() <= 1:
        last: IntArray = query_start[1:][num_lines > 0] - 1
        return last
    first = np.repeat(query_start[1:] - num_lines - line_start[:-1], num_lines)
    tokens: IntArray = first + np.arange(line_start[-1], dtype=np.int32)
    return tokens


def _shared(plan: StepPlan, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Groups of rows below one shared prefix, as indices into the batch: starts [G + 1], rows [M], pages [G]."""
    if not plan.shared:
        empty = np.zeros(0, dtype=np.int32)
        return np.zeros(1, dtype=np.int32), empty, empty
    index_of_row = {row: index for index, row in enumerate(rows.tolist())}  # the spare row is in no group
    members = [[index_of_row[row] for row in group.rows] for group in plan.shared]
    start = starts_of(np.asarray([len(group) for group in members], dtype=np.int32))
    pages = np.asarray([group.num_pages for group in plan.shared], dtype=np.int32)
    return start, np.asarray([each for group in members for each in group], dtype=np.int32), pages
