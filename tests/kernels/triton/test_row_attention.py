"""rope_attention against rope_kv_write and paged_attention. Red when a key is left out or read twice at the border of a
split or a page, the new token is not seen, padding is written, or a launch leaves tickets behind."""

from __future__ import annotations

import pytest
import torch

from phloem.graph.ops import lowered
from phloem.graph.ops.model import frequencies
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.row_attention import MAX_SPLITS, RopeAttention
from tests.kernels.triton.compare import EPS, poison_allocator, randn

CONTEXTS = ((1,), (64,), (65, 1), (64 * MAX_SPLITS, 64 * MAX_SPLITS + 1), (1500, 33, 700))
HEADS = ((4, 4, 64, 16), (8, 1, 96, 32), (5, 1, 128, 64), (4, 2, 256, 16), (2, 2, 16, 16))
"""Query heads, KV heads, head_dim, page size."""


@pytest.mark.parametrize("contexts", CONTEXTS)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "page_size"), HEADS)
@pytest.mark.parametrize(("normed", "window"), [(True, None), (False, 100)])
def test_rope_attention(
    device: torch.device,
    contexts: tuple[int, ...],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    normed: bool,
    window: int | None,
) -> None:
    dtype = torch.float16  # the interpreter cannot multiply bfloat16; tests/gpu does
    num_rows = len(contexts)
    table, slots, num_pages = pages_of(contexts, page_size, device)
    cache = randn(num_pages, 2, page_size, num_kv_heads, head_dim, seed=1, device=device, dtype=dtype)
    qkv = randn(num_rows + 1, (num_heads + 2 * num_kv_heads) * head_dim, seed=2, device=device, dtype=dtype)
    norms = randn(2, head_dim, seed=3, device=device, dtype=dtype) if normed else (None, None)
    before = (*norms, EPS, integers(contexts, device) - 1, slots)
    no_groups = [integers([0] * size, device) for size in (1, 0, 0)]
    starts = integers(range(num_rows + 1), device)
    attend = RopeAttention(device)
    poison_allocator(device, num_rows + 1, num_heads * head_dim, dtype=dtype)

    def padded(numbers: torch.Tensor, value: int) -> torch.Tensor:
        return torch.cat([numbers, integers([value], device)])

    ours = cache.clone()
    for _ in range(2):  # the second time finds the tickets as the first left them
        actual = attend(
            qkv, *norms, EPS, padded(before[3], 0), padded(slots, -1), frequencies(head_dim).to(device), ours,
            padded(starts, num_rows), padded(integers(contexts, device), 0), torch.cat([table, table[:1]]), *no_groups,
            head_dim**-0.5, window, shape=AttentionShape(num_rows + 1, num_rows + 1, num_rows + 1, 1, 4096),
        )  # fmt: skip
    theirs = cache.clone()
    q = lowered.rope_kv_write(qkv[:-1], *before, frequencies(head_dim).to(device), theirs)
    meta = (starts, integers(contexts, device), table, *no_groups)
    expected = lowered.paged_attention(q, theirs, *meta, head_dim**-0.5, window)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4e-3)
    torch.testing.assert_close(actual[:-1], expected, rtol=0, atol=4e-3)
    assert not actual[-1].any(), "a token that no row owns"


def pages_of(contexts: tuple[int, ...], page_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A block table of pages in no order, and the slot of each row's last token."""
    counts = [-(-context // page_size) for context in contexts]
    pages = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).tolist()
    table = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = torch.tensor(pages[:count], dtype=torch.int32)
        del pages[:count]
    last = [int(table[row, count - 1]) * page_size + (context - 1) % page_size
            for row, (count, context) in enumerate(zip(counts, contexts))]  # fmt: skip
    return table.to(device), integers(last, device), sum(counts)


def integers(values, device: torch.device) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device=device)
