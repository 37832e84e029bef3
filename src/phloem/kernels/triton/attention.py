"""The op paged_attention on CUDA: which kernel does which rows. Nothing here waits for the device.

    rows with one query (all rows, if each has only a few) -> attention_decode  \
    prefixes that such rows share                          -> attention_shared   > attention_merge
    the other rows                                         -> attention_extend
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from phloem.kernels.triton.attention_decode import decode
from phloem.kernels.triton.attention_extend import extend
from phloem.kernels.triton.attention_inputs import AttentionInputs
from phloem.kernels.triton.attention_merge import merge
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.attention_shared import attend_shared

MAX_PACKED_QUERIES = 64  # queries of a row times heads_per_kv_head, up to which the decode kernel takes several queries


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    block_table: Tensor,
    shared_start: Tensor,
    shared_rows: Tensor,
    shared_pages: Tensor,
    scale: float,
    window: int | None = None,
    *,
    shape: AttentionShape,
    extend_rows: Callable[..., Tensor] = extend,
) -> Tensor:
    """[T, H * d], as graph/ops/lowered.py says.

    Tokens that no row owns, or whose row has no context, come out as zeros. A page holds a power of two of at least 16
    tokens. Groups are a hint that is followed where it pays: among the leading rows of one query each, outside
    deterministic mode. `extend_rows` replaces attention_extend.extend.
    """
    inputs = AttentionInputs(q, kv_cache, query_start, context_len, block_table, scale, window, shape)
    shared = shape.num_shared > 0 and shape.num_decode_rows > 0 and not shape.deterministic
    few_queries = shape.max_query_len * inputs.ratio <= MAX_PACKED_QUERIES
    alike = shape.max_query_len <= 1 or not shape.deterministic  # else another row's queries would change a row's tile
    whole_step = few_queries and alike and not shared
    num_rows = shape.num_rows if whole_step else shape.num_decode_rows
    max_query_len = max(1, shape.max_query_len) if whole_step else 1
    out = extend_rows(inputs, first_row=num_rows) if num_rows < shape.num_rows else inputs.empty_out()
    if num_rows:
        prefix = attend_shared(inputs, shared_start, shared_rows, shared_pages, num_rows=num_rows) if shared else None
        row_prefix = prefix.row_prefix if prefix else None
        partials = decode(inputs, out, num_rows=num_rows, max_query_len=max_query_len, row_prefix=row_prefix)
        merge(inputs, out, partials, prefix, num_rows=num_rows, max_query_len=max_query_len)
    return out
