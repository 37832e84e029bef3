"""paged_attention with FlashAttention-3 (Shah et al. 2024) for the rows that have many queries.

The library (PyPI tokenspeed-fa3) reads our pages as they are: keys and values of a cache [P, 2, S, K, d] are two
strided views. Rows of one query stay with kernels/triton, which moves their bytes faster.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from typing import Any

from torch import Tensor

from phloem.kernels.triton.attention import paged_attention as triton_paged_attention
from phloem.kernels.triton.attention_extend import zero_unowned
from phloem.kernels.triton.attention_inputs import AttentionInputs


@cache
def _library() -> Any:
    return import_module("flash_attn_interface")


def extend(inputs: AttentionInputs, *, first_row: int) -> Tensor:
    """[T, H d] with the tokens of the rows from `first_row` on; those of earlier rows are left for others to write."""
    window = (-1, -1) if inputs.window is None else (inputs.window - 1, 0)
    out: Tensor = _library().flash_attn_with_kvcache(
        inputs.q,
        inputs.kv_cache[:, 0],
        inputs.kv_cache[:, 1],
        cache_seqlens=inputs.context_len[first_row:],
        page_table=inputs.block_table[first_row:],
        cu_seqlens_q=inputs.query_start[first_row:],
        max_seqlen_q=inputs.shape.max_query_len,
        softmax_scale=inputs.scale,
        causal=True,
        window_size=window,
    )
    out = out.view(inputs.q.shape[0], -1)
    zero_unowned(inputs, out)
    return out


paged_attention = partial(triton_paged_attention, extend_rows=extend)
