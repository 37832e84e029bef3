"""The attention references against torch's own, and against each other through pages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from phloem.graph.ops.lowered import paged_attention, rope_kv_write
from phloem.graph.ops.model import attention, frequencies, rope


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_attention_equals_sdpa(window: int | None) -> None:
    """Red if causality, the window (itself included), the grouping of heads or the scale is wrong."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, heads, 16, generator=g) for heads in (6, 2, 2))
    at = torch.arange(9)
    mask = (at[None] <= at[:, None]) & (at[None] > at[:, None] - (window or 9))
    expected = F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), attn_mask=mask, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(attention(q, k, v, 0.3, window), expected[0].transpose(0, 1).reshape(9, -1))


@pytest.mark.parametrize("window", [None, 4])
def test_pages_hold_what_attention_needs(window: int | None) -> None:
    """Red if rope_kv_write and paged_attention together are not rope and attention: slots, order of q, k, v, chunks."""
    g = torch.Generator().manual_seed(0)
    H, K, d, S, length = 4, 2, 16, 4, 11
    qkv, inv_freq = torch.randn(length, (H + 2 * K) * d, generator=g), frequencies(d)
    pages = torch.tensor([[5, 2, 7]], dtype=torch.int32)
    cache = torch.full((8, 2, S, K, d), float("nan"))
    outputs = []
    for start, stop in ((0, 5), (5, 10), (10, 11)):
        positions = torch.arange(start, stop, dtype=torch.int32)
        slots = pages[0][positions // S] * S + positions % S
        q = rope_kv_write(qkv[start:stop], None, None, 0.0, positions, slots, inv_freq, cache)
        meta = [torch.tensor(x, dtype=torch.int32) for x in ([0, stop - start], [stop])]
        groups = [torch.zeros(n, dtype=torch.int32) for n in (1, 0, 0)]
        outputs.append(paged_attention(q, cache, *meta, pages, *groups, 0.25, window))
    everything = torch.arange(length)
    q, k, v = qkv.view(length, -1, d).split([H, K, K], dim=1)
    expected = attention(rope(q, everything, inv_freq), rope(k, everything, inv_freq), v, 0.25, window)
    torch.testing.assert_close(torch.cat(outputs), expected)
    untouched = [page for page in range(8) if page not in (5, 2, 7)]
    assert cache[untouched].isnan().all()
