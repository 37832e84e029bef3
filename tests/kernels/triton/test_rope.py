"""rope_kv_write against its reference. Red when a head lands in the wrong page, a negative slot writes, a head dim that
is no power of two loses columns, or the norm is applied to values."""

from __future__ import annotations

import pytest
import torch

from phloem.graph.ops import lowered
from phloem.graph.ops.model import frequencies
from phloem.kernels.triton.rope import rope_kv_write
from tests.kernels.triton.compare import DTYPES, EPS, poison_allocator, randn, strided

SHAPES = ((4, 4, 64, 16), (6, 2, 96, 16), (16, 8, 128, 32), (5, 1, 256, 1), (40, 8, 128, 64), (1, 1, 16, 3))


def tolerance(dtype: torch.dtype, scale: float) -> float:
    """Two roundings: of the normalized number before the rotation, and of the result."""
    return (2.0**-6 if dtype == torch.bfloat16 else 2.0**-9) * scale


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "page_size"), SHAPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_kv_write(
    device: torch.device,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    normed: bool,
    dtype: torch.dtype,
) -> None:
    num_tokens, num_pages = 5, 7
    qkv = randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, seed=1, device=device, dtype=dtype)
    norms = [randn(head_dim, seed=seed, device=device, dtype=dtype) if normed else None for seed in (2, 3)]
    positions = torch.tensor([0, 1, 77, 4096, 131_071], dtype=torch.int32, device=device)
    slots = torch.tensor(
        [num_pages * page_size - 1, 0, page_size, 2 * page_size, 5 * page_size - 1], device=device
    ).int()
    freq = frequencies(head_dim, 1e6).to(device)
    cache = randn(num_pages, 2, page_size, num_kv_heads, head_dim, seed=4, device=device, dtype=dtype)
    expected_cache = cache.clone()
    expected = lowered.rope_kv_write(qkv, *norms, EPS, positions, slots, freq, expected_cache)
    poison_allocator(device, *expected.shape, dtype=dtype)
    actual = rope_kv_write(strided(qkv), *norms, EPS, positions, slots, freq, cache)
    for ours, theirs in ((actual, expected), (cache, expected_cache)):
        scale = theirs.float().abs().max().item()
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=tolerance(dtype, scale))
    untouched = torch.ones(num_pages * page_size, dtype=torch.bool, device=device)
    untouched[slots.long()] = False
    by_slot = [x.transpose(1, 2).reshape(num_pages * page_size, -1) for x in (cache, expected_cache)]
    assert torch.equal(by_slot[0][untouched], by_slot[1][untouched])


def test_cache_of_8_bit_floats(device: torch.device) -> None:
    """Red if a number beyond 448 becomes NaN, or is scaled where attention does not scale it back."""
    qkv = (
        randn(5, 8 * 64, seed=1, device=device) * torch.tensor([0.01, 0.1, 1.0, 100.0, 1000.0], device=device)[:, None]
    )
    positions = slots = torch.arange(5, dtype=torch.int32, device=device)
    caches = [torch.zeros(1, 2, 16, 2, 64, device=device, dtype=torch.float8_e4m3fn) for _ in range(2)]
    freq = frequencies(64).to(device)
    rope_kv_write(qkv, None, None, EPS, positions, slots, freq, caches[0])
    lowered.rope_kv_write(qkv, None, None, EPS, positions, slots, freq, caches[1])
    ours, theirs = (cache.float() for cache in caches)
    assert ours.abs().max() == 448
    torch.testing.assert_close(ours, theirs, rtol=1 / 8, atol=2.0**-9)  # one step of e4m3, where a rounding is a tie
    assert (ours != theirs).float().mean() < 0.01


def test_a_negative_slot_writes_nothing(device: torch.device) -> None:
    """Padding of a graph's bucket: its query may be anything finite, the cache stays."""
    qkv = randn(3, 8 * 64, seed=1, device=device, dtype=torch.bfloat16)
    positions, slots = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([5, 0, 0], [3, -1, -1]))
    cache = randn(2, 2, 4, 2, 64, seed=2, device=device, dtype=torch.bfloat16)
    before = cache.clone()
    q = rope_kv_write(qkv, None, None, EPS, positions, slots, frequencies(64).to(device), cache)
    assert q.isfinite().all()
    changed = (cache != before).any(-1).any(-1)  # [pages, 2, page_size]
    assert changed.nonzero().tolist() == [[0, 0, 3], [0, 1, 3]]


def test_a_token_does_not_depend_on_its_batch(device: torch.device) -> None:
    qkv = randn(33, 20 * 64, seed=1, device=device, dtype=torch.bfloat16)
    norms = [randn(64, seed=seed, device=device) for seed in (2, 3)]
    positions = torch.arange(33, dtype=torch.int32, device=device)
    caches = [torch.zeros(3, 2, 16, 2, 64, device=device, dtype=torch.bfloat16) for _ in range(2)]
    freq = frequencies(64).to(device)
    together = rope_kv_write(qkv, *norms, EPS, positions, positions, freq, caches[0])
    alone = rope_kv_write(qkv[20:21], *norms, EPS, positions[20:21], positions[20:21], freq, caches[1])
    assert torch.equal(together[20:21], alone)
    assert torch.equal(caches[0][1, :, 4], caches[1][1, :, 4])
