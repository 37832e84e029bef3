"""The KV pool: shapes, copies, and memory that is not touched before it is used."""

from __future__ import annotations

import resource

import torch

from phloem.core.plan import PageCopy
from phloem.memory.pool.kv import KvPool
from phloem.memory.spec import FullAttention


def make_pool(num_pages: int = 6) -> KvPool:
    layers = (FullAttention(num_kv_heads=2, head_dim=16), FullAttention(num_kv_heads=1, head_dim=32))
    return KvPool(layers=layers, num_pages=num_pages, page_size=32, dtype=torch.bfloat16, device=torch.device("cpu"))


def test_one_flat_zeroed_tensor_a_layer() -> None:
    pool = make_pool()
    assert [tuple(layer.shape) for layer in pool.layers] == [(6, 32 * 64), (6, 32 * 64)]
    assert all(layer.is_contiguous() and not layer.any() for layer in pool.layers)


def test_copies_read_every_source_before_any_target_is_written() -> None:
    """A chain 0 -> 1 -> 2: page 2 gets what page 1 held, not what page 0 held."""
    pool = make_pool()
    for layer in pool.layers:
        layer[0], layer[1] = 1, 2
    pool.copy_pages([PageCopy(0, 1), PageCopy(1, 2)])
    for layer in pool.layers:
        assert layer[1].eq(1).all()
        assert layer[2].eq(2).all()


def test_pages_of_8_bit_floats_move_too() -> None:
    """Red when copying goes through arithmetic that a type does not have, or takes a number for another."""
    layers = (FullAttention(num_kv_heads=2, head_dim=16),)
    kind = {"dtype": torch.float8_e4m3fn, "device": torch.device("cpu")}
    pool = KvPool(layers=layers, num_pages=3, page_size=16, **kind)
    pool.layers[0].view(torch.uint8)[0] = torch.arange(1024, dtype=torch.int32).to(torch.uint8)  # NaN among them
    pool.copy_pages([PageCopy(0, 2)])
    bits = pool.layers[0].view(torch.uint8)
    assert torch.equal(bits[2], bits[0])
    assert not bits[1].any()


def test_a_large_pool_costs_nothing_before_it_is_used() -> None:
    """Turns red when the pool is cleared by writing: 2 GB would appear in the resident size."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool = make_pool(num_pages=2 * 10**9 // (2 * 32 * 64 * 2))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000
    assert pool.layers[0][-1].sum() == 0
