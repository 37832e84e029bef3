# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Device functions that the attention kernels share: which keys a row has, where they lie, and the running softmax.

Tiles: [M, N] scores of M packed queries (token-major: query m of a row is token m // RATIO, head m % RATIO of the KV
head's group) and N keys; [N, d] keys and values; [M, d] accumulators. Softmax statistics are in base 2: the scores
are scaled by scale * log2(e). The running form is that of Milakov and Gimelshein 2018, "Online normalizer calculation
for softmax", as FlashAttention (Dao 2022) uses it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from phloem.kernels.triton.fp8 import widen


@triton.jit
def follow_launch(EARLY: tl.constexpr):
    """Wait for what the kernel before has written, and let the next one start up (programmatic dependent launch)."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def row_units(
    rows, num_rows, query_start, context_len, row_prefix, window,
    UNIT: tl.constexpr, WINDOWED: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """(units of UNIT keys, first unit) of each row: none without queries, at least one with, so that it is written."""
    inside = rows < num_rows
    num_queries = tl.load(query_start + rows + 1, mask=inside, other=0)
    num_queries -= tl.load(query_start + rows, mask=inside, other=0)
    context = tl.load(context_len + rows, mask=inside, other=0)
    first = context * 0
    if SHARED:
        first = tl.load(row_prefix + rows, mask=inside, other=0) // UNIT
    if WINDOWED:
        first = tl.maximum(first, tl.maximum(context - num_queries - window + 1, 0) // UNIT)
    units = tl.maximum(tl.cdiv(context, UNIT) - first, 1)
    return tl.where(num_queries > 0, units, 0), first


@triton.jit
def load_pages(table, begin, stop, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page ids of the keys begin .. begin + BLOCK_N (begin a multiple of BLOCK_N): one, or one a key; 0 from `stop`."""
    if PAGE_SIZE >= BLOCK_N:
        pages = tl.load(table + begin // PAGE_SIZE, mask=begin < stop, other=0)
    else:
        keys = begin + tl.arange(0, BLOCK_N)
        pages = tl.load(table + keys // PAGE_SIZE, mask=keys < stop, other=0)
    return pages


@triton.jit
def key_offsets(pages, begin, page_stride, slot_stride, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """[N] element offsets of the keys begin .. begin + BLOCK_N in the cache, int64."""
    keys = begin + tl.arange(0, BLOCK_N)
    return pages.to(tl.int64) * page_stride + (keys % PAGE_SIZE) * slot_stride


@triton.jit
def softmax_start(TILE_M: tl.constexpr, DIM_PAD: tl.constexpr):
    """(accumulator [M, d], maximum [M], sum [M]) before any key."""
    nothing = tl.full([TILE_M], float("-inf"), tl.float32)
    return tl.zeros([TILE_M, DIM_PAD], tl.float32), nothing, tl.zeros([TILE_M], tl.float32)


@triton.jit
def softmax_step(scores, row_max, row_sum, scale_log2, MASKED: tl.constexpr):
    """(weights [M, N], factor for what was accumulated before [M], new maximum, new sum); -inf scores weigh nothing.

    The scores come unscaled, so that scaling and subtracting are one multiply-add; the maximum is that of scaled ones.
    """
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
    base = tl.where(new_max == float("-inf"), 0.0, new_max) if MASKED else new_max
    weights = tl.exp2(scores * scale_log2 - base[:, None])
    factor = tl.exp2(row_max - base)
    return weights, factor, new_max, row_sum * factor + tl.sum(weights, 1)


@triton.jit
def attend_keys(
    acc, row_max, row_sum, q_tile, first_seen, last_seen, begin, stop,
    kv, kv_rows, kv_head, table, page_stride, value_stride, slot_stride, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, MASKED: tl.constexpr, LOWER: tl.constexpr,
):  # fmt: skip
    """(acc, row_max, row_sum) after the keys begin .. stop (begin a multiple of BLOCK_N) of one row and KV head.

    Query m sees the keys first_seen[m] .. last_seen[m] (last_seen < stop); the lower bound counts only with LOWER, both
    only with MASKED. Without MASKED the range is whole blocks that every query sees. Keys beyond
    `stop` or before every first_seen are never read.
    Keys and values are multiplied in q_tile's type, whatever the cache holds.
    `kv_rows` is None or describes the cache as rows of [KV heads * HEAD_DIM] for the copy engine, which then loads the
    blocks of a range without masks (a block lies inside one page).
    """
    HELD: tl.constexpr = q_tile.shape[1] == HEAD_DIM and not MASKED  # every element of the tiles is a key's
    COPIED: tl.constexpr = kv_rows is not None and not MASKED
    dims = tl.arange(0, q_tile.shape[1])
    inside = (dims < HEAD_DIM)[None, :]
    lowest = tl.min(first_seen, 0) if MASKED and LOWER else 0
    pages = load_pages(table, begin, stop, PAGE_SIZE, BLOCK_N)
    for first_key in tl.range(begin, stop, BLOCK_N):
        keys = first_key + tl.arange(0, BLOCK_N)
        if COPIED:
            key_row, column = pages * (2 * PAGE_SIZE) + first_key % PAGE_SIZE, kv_head * HEAD_DIM
            k_tile = kv_rows.load([key_row, column])
        else:
            where = key_offsets(pages, first_key, page_stride, slot_stride, PAGE_SIZE, BLOCK_N)
            where = kv + kv_head * HEAD_DIM + where[:, None] + dims[None, :]
            held = ((keys >= lowest) & (keys < stop))[:, None] & inside if MASKED else inside
            k_tile = tl.load(where) if HELD else tl.load(where, mask=held, other=0.0)
        pages = load_pages(table, first_key + BLOCK_N, stop, PAGE_SIZE, BLOCK_N)
        scores = tl.dot(q_tile, widen(k_tile, q_tile.dtype).T, input_precision="ieee")
        if MASKED:
            seen = keys[None, :] <= last_seen[:, None]
            if LOWER:
                seen = seen & (keys[None, :] >= first_seen[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        weights, factor, row_max, row_sum = softmax_step(scores, row_max, row_sum, scale_log2, MASKED)
        if COPIED:
            v_tile = kv_rows.load([key_row + PAGE_SIZE, column])
        else:
            v_tile = tl.load(where + value_stride) if HELD else tl.load(where + value_stride, mask=held, other=0.0)
        v_tile = widen(v_tile, q_tile.dtype)
        acc = tl.dot(weights.to(q_tile.dtype), v_tile, acc * factor[:, None], input_precision="ieee")
    return acc, row_max, row_sum


@triton.jit
def softmax_end(acc, row_max, row_sum):
    """(normalized [M, d], log-sum-exp [M] in base 2); zeros and -inf for a query that saw no key."""
    divisor = tl.where(row_sum == 0.0, 1.0, row_sum)
    return acc / divisor[:, None], tl.where(row_sum == 0.0, float("-inf"), row_max + tl.log2(divisor))


@triton.jit
def join_weights(part_lse, largest, total):
    """(weight of a part, factor for what was joined before, new maximum, new sum of weights) by log-sum-exps [...].

    softmax over the union of two key sets is the average of the softmaxes over each, weighted by 2^lse. The caller's
    fma(part, weight, joined * factor), with no choice left to a compiler, is the same number in any kernel.
    """
    new_largest = tl.maximum(largest, part_lse)
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weight = tl.exp2(part_lse - base)
    factor = tl.exp2(largest - base)
    return weight, factor, new_largest, tl.fma(total, factor, weight)


@triton.jit
def zero_tail(out, query_start, num_rows, num_tokens, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr):
    """Zero the tokens that no row owns (a graph bucket's padding), spread over the programs of axis 0."""
    columns = tl.arange(0, WIDTH_PAD)
    token = tl.load(query_start + num_rows) + tl.program_id(0)
    while token < num_tokens:
        where = out + token.to(tl.int64) * WIDTH + columns
        tl.store(where, tl.zeros([WIDTH_PAD], tl.float32).to(out.dtype.element_ty), mask=columns < WIDTH)
        token += tl.num_programs(0)
