# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The device row store's kernels: apply a packed plan, fill a step's inputs.

    apply_plan(plan, store)                     rows that start, pages that are added
    fill_inputs(plan, store, step, size)        the inputs of a bucket; `computed` advances
    (the model runs; sample.sample appends the tokens that it draws)

Both only launch: sizes of the step come from the plan's header on the device, sizes of the bucket from the host,
so one captured graph serves every plan that fits its bucket. The layout of `plan` stands in packed.py.

A bucket is padded: batch rows from R on have no tokens (query_start stays T) and context_len 0; tokens from T on have
slot -1, position 0 and token 0; logit lines from L on read token 0 and have line_row -1; groups from G on are empty
(shared_start stays M). Places of block_table beyond a row's context keep whatever they held.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from phloem.kernels.triton import packed
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors

APPLY_PROGRAMS = 32  # programs of apply_plan, whatever the plan's size: the grid of a captured launch is fixed
APPLY_BLOCK = 256
TAIL_BLOCK = 1024

HEADER: tl.constexpr = tl.constexpr(packed.HEADER_WORDS)
START_WORDS: tl.constexpr = tl.constexpr(packed.START_WORDS)
START_SAMPLING: tl.constexpr = tl.constexpr(packed.START_SAMPLING)
SAMPLING_WORDS: tl.constexpr = tl.constexpr(packed.SAMPLING_WORDS)


def apply_plan(plan: Tensor, store: RowTensors) -> None:
    """Start the plan's starting rows and add its pages. `plan` int32, on the device, see packed.py.

    Prompt tokens of starting rows are not in the plan: they are copied to `store.tokens` by themselves.
    """
    _apply[(APPLY_PROGRAMS,)](
        plan,
        store.block_table,
        store.block_table.stride(0),
        store.known,
        store.computed,
        store.num_prompt,
        store.sampling,
        PROGRAMS=APPLY_PROGRAMS,
        BLOCK=APPLY_BLOCK,
        num_warps=4,
    )


def fill_inputs(plan: Tensor, store: RowTensors, step: StepTensors, size: BucketSize, *, page_size: int) -> None:
    """Write the inputs of the step that an already applied plan describes, padded to `size`; advance `computed`."""
    _fill[(size.num_rows + 1,)](
        plan,
        store.tokens,
        store.tokens.stride(0),
        store.block_table,
        store.block_table.stride(0),
        store.computed,
        step.token_ids,
        step.positions,
        step.slots,
        step.query_start,
        step.context_len,
        step.block_table,
        step.block_table.stride(0),
        step.logit_rows,
        step.line_rows,
        step.shared_start,
        step.shared_rows,
        step.shared_pages,
        size.num_rows,
        size.num_tokens,
        size.num_logits,
        size.num_shared,
        page_size,
        BLOCK=64 if size.num_tokens <= size.num_rows else 1024,
        TAIL_BLOCK=TAIL_BLOCK,
        num_warps=4,
    )


@triton.jit
def _apply(
    plan, block_table, table_stride, known, computed, num_prompt, sampling, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr
):
    pid = tl.program_id(0)
    num_shared, num_starts, num_pages = tl.load(plan + 3), tl.load(plan + 5), tl.load(plan + 6)
    before = 2 * tl.load(plan) + 2 * tl.load(plan + 2) + 2 * num_shared + tl.load(plan + 4) + 2
    starts = plan + HEADER + before
    words = tl.arange(0, SAMPLING_WORDS)
    for begin in tl.range(pid, num_starts, PROGRAMS):
        start = starts + begin * START_WORDS
        row = tl.load(start)
        tl.store(known + row, tl.load(start + 1))
        tl.store(computed + row, tl.load(start + 2))
        tl.store(num_prompt + row, tl.load(start + 3))
        tl.store(sampling + row * SAMPLING_WORDS + words, tl.load(start + START_SAMPLING + words))
    pages = starts + num_starts * START_WORDS
    for first in tl.range(pid * BLOCK, num_pages, PROGRAMS * BLOCK):
        index = first + tl.arange(0, BLOCK)
        exists = index < num_pages
        row = tl.load(pages + 3 * index, mask=exists, other=0).to(tl.int64)
        place = tl.load(pages + 3 * index + 1, mask=exists, other=0)
        page = tl.load(pages + 3 * index + 2, mask=exists, other=0)
        tl.store(block_table + row * table_stride + place, page, mask=exists)


# Sizes of a bucket are no reason to compile: they differ from step to step.
@triton.jit(do_not_specialize=["bucket_rows", "bucket_tokens", "bucket_logits", "bucket_shared"])
def _fill(
    plan,
    tokens,
    tokens_stride,
    block_table,
    table_stride,
    computed,
    token_ids,
    positions,
    slots,
    query_start,
    context_len,
    step_table,
    step_stride,
    logit_rows,
    line_rows,
    shared_start,
    shared_rows,
    shared_pages,
    bucket_rows,
    bucket_tokens,
    bucket_logits,
    bucket_shared,
    page_size,
    BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
):
    """One program a batch row of the bucket, and one for everything that is not of a row."""
    index = tl.program_id(0)
    num_rows, num_tokens = tl.load(plan), tl.load(plan + 1)
    starts = plan + HEADER + num_rows
    if index < num_rows:
        row = tl.load(plan + HEADER + index).to(tl.int64)
        start, stop = tl.load(starts + index), tl.load(starts + index + 1)
        first = tl.load(computed + row)
        tl.store(query_start + index, start)
        tl.store(context_len + index, first + stop - start)
        known, pages = tokens + row * tokens_stride, block_table + row * table_stride
        step_pages = step_table + index.to(tl.int64) * step_stride
        out_ids, out_positions, out_slots = token_ids + start, positions + start, slots + start
        _fill_row(known, pages, step_pages, out_ids, out_positions, out_slots, first, stop - start, page_size, BLOCK)
        tl.debug_barrier()  # every thread has read `computed`
        tl.store(computed + row, first + stop - start)
    elif index < bucket_rows:
        tl.store(query_start + index, num_tokens)
        tl.store(context_len + index, 0)
    else:
        tl.store(query_start + bucket_rows, num_tokens)
        _pad_tokens(token_ids, positions, slots, num_tokens, bucket_tokens, TAIL_BLOCK)
        num_logits = tl.load(plan + 2)
        lines = starts + num_rows + 1
        _copy_padded(lines, num_logits, logit_rows, bucket_logits, 0, TAIL_BLOCK)
        _copy_padded(lines + num_logits, num_logits, line_rows, bucket_logits, -1, TAIL_BLOCK)
        num_shared, num_members = tl.load(plan + 3), tl.load(plan + 4)
        groups = lines + 2 * num_logits
        _copy_padded(groups, num_shared + 1, shared_start, bucket_shared + 1, num_members, TAIL_BLOCK)
        _copy_padded(groups + num_shared + 1, num_members, shared_rows, num_members, 0, TAIL_BLOCK)
        _copy_padded(groups + num_shared + 1 + num_members, num_shared, shared_pages, bucket_shared, 0, TAIL_BLOCK)


@triton.jit
def _fill_row(tokens, pages, step_pages, token_ids, positions, slots, first, count, page_size, BLOCK: tl.constexpr):
    """The tokens first .. first + count of one row, and its pages so far."""
    for begin in tl.range(0, count, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        exists = index < count
        position = first + index
        page = tl.load(pages + position // page_size, mask=exists, other=0)
        tl.store(token_ids + index, tl.load(tokens + position, mask=exists, other=0), mask=exists)
        tl.store(positions + index, position, mask=exists)
        tl.store(slots + index, page * page_size + position % page_size, mask=exists)
    num_pages = tl.cdiv(first + count, page_size)
    for begin in tl.range(0, num_pages, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        tl.store(step_pages + index, tl.load(pages + index, mask=index < num_pages, other=0), mask=index < num_pages)


@triton.jit
def _pad_tokens(token_ids, positions, slots, num_tokens, bucket_tokens, BLOCK: tl.constexpr):
    """Tokens of the bucket beyond the step's own: they write no keys."""
    for begin in tl.range(num_tokens, bucket_tokens, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        tl.store(token_ids + token, 0, mask=token < bucket_tokens)
        tl.store(positions + token, 0, mask=token < bucket_tokens)
        tl.store(slots + token, -1, mask=token < bucket_tokens)


@triton.jit
def _copy_padded(source, count, target, length, padding, BLOCK: tl.constexpr):
    """target[:length] = source[:count], then padding."""
    for begin in tl.range(0, length, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        value = tl.where(index < count, tl.load(source + index, mask=index < count, other=0), padding)
        tl.store(target + index, value, mask=index < length)
