"""rope_kv_write and paged_attention against torch, and the promise that a token's numbers depend on nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from phloem.kernels.cpu.kv_layout import pack_pages, page_elements, unpack_pages
from phloem.kernels.cpu.library import Library, Pool
from phloem.kernels.cpu.tape import AttentionMeta, CacheShape, Dims, Tape

TYPES = (torch.bfloat16, torch.float32)
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-5}


@dataclass(frozen=True)
class Layer:
    """Sizes of one attention layer, and its rope."""

    heads: int = 9
    kv_heads: int = 3
    dim: int = 64
    page_size: int = 32
    window: int | None = None
    dtype: torch.dtype = torch.bfloat16

    @property
    def shape(self) -> CacheShape:
        return CacheShape(self.kv_heads, self.dim, self.page_size)

    @property
    def inv_freq(self) -> torch.Tensor:
        return 1.0 / 10000.0 ** (torch.arange(0, self.dim, 2).float() / self.dim)


@dataclass(frozen=True)
class Row:
    """A sequence of the step: its qkv of all positions, the tokens in the cache before, and its pages."""

    qkv: torch.Tensor  # [context, (H+2K)d]
    num_cached: int
    pages: list[int]


class Engine:
    """A cache and the two ops on it."""

    def __init__(self, native: Library, pool: Pool, layer: Layer, num_pages: int = 64) -> None:
        self.native, self.pool, self.layer = native, pool, layer
        elements = page_elements(layer.kv_heads, layer.dim, layer.page_size)
        self.cache = torch.full((num_pages, elements), float("nan"), dtype=layer.dtype)

    def step(self, rows: list[Row], groups: list[tuple[list[int], int]] | None = None) -> list[torch.Tensor]:
        """Computes the new tokens of every row; outputs [new tokens, H*d] a row."""
        layer, groups = self.layer, groups or []
        counts = [len(row.qkv) - row.num_cached for row in rows]
        positions = torch.cat([torch.arange(row.num_cached, len(row.qkv)) for row in rows])
        slots = torch.cat([self.slots(row) for row in rows])
        qkv = torch.cat([row.qkv[row.num_cached :] for row in rows]).contiguous()
        most_pages = max(len(row.pages) for row in rows)
        table = torch.tensor([row.pages + [-1] * (most_pages - len(row.pages)) for row in rows])
        starts = torch.tensor([0, *counts]).cumsum(0)
        members = [row for group, _ in groups for row in group]
        meta = AttentionMeta(
            query_start=starts.int(),
            context_len=torch.tensor([len(row.qkv) for row in rows]).int(),
            block_table=table.int(),
            shared_start=torch.tensor([0, *(len(group) for group, _ in groups)]).cumsum(0).int(),
            shared_rows=torch.tensor(members or [0]).int(),
            shared_pages=torch.tensor([pages for _, pages in groups] or [0]).int(),
        )
        q = torch.empty(len(qkv), layer.heads * layer.dim, dtype=layer.dtype)
        out = torch.full_like(q, float("nan"))
        tape = Tape(self.native, self.pool)
        tape.rope_kv_write(
            qkv, q, self.cache, shape=layer.shape, positions=positions.int(), slots=slots.int(), inv_freq=layer.inv_freq
        )
        tape.paged_attention(
            q,
            self.cache,
            out,
            meta=meta,
            shape=layer.shape,
            num_heads=layer.heads,
            scale=layer.dim**-0.5,
            window=layer.window,
        )
        tape.run(Dims(len(qkv), 0, len(rows), len(groups)))
        return list(out.split(counts))

    def slots(self, row: Row) -> torch.Tensor:
        position = torch.arange(row.num_cached, len(row.qkv))
        size = self.layer.page_size
        return torch.tensor(row.pages)[position // size] * size + position % size


def rotate(x: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """x [context, heads, d] float32, rotated by position."""
    angle = torch.arange(len(x)).float()[:, None] * inv_freq
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def reference(layer: Layer, qkv: torch.Tensor) -> torch.Tensor:
    """Attention of a whole sequence in float32, rounding q, k and v as the cache does: [context, H*d]."""
    context = len(qkv)
    q, k, v = qkv.float().split([layer.heads * layer.dim, layer.kv_heads * layer.dim, layer.kv_heads * layer.dim], 1)
    q = rotate(q.view(context, layer.heads, layer.dim), layer.inv_freq).to(layer.dtype).float()
    k = rotate(k.view(context, layer.kv_heads, layer.dim), layer.inv_freq).to(layer.dtype).float()
    group = layer.heads // layer.kv_heads
    k = k.repeat_interleave(group, 1)
    v = v.view(context, layer.kv_heads, layer.dim).repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * layer.dim**-0.5
    behind = torch.arange(context)[:, None] - torch.arange(context)[None, :]
    hidden = (behind < 0) | (behind >= (layer.window or context + 1))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).reshape(context, -1)


def random_qkv(layer: Layer, context: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = (layer.heads + 2 * layer.kv_heads) * layer.dim
    return torch.randn(context, width, generator=generator).to(layer.dtype)


def pages_for(context: int, page_size: int, first: int) -> list[int]:
    """Enough pages, not in order of number."""
    count = -(-context // page_size)
    return [first + (i * 7) % count if count % 7 else first + count - 1 - i for i in range(count)]


LAYERS = (
    Layer(),
    Layer(dtype=torch.float32),
    Layer(heads=4, kv_heads=4, dim=80, page_size=64),
    Layer(heads=14, kv_heads=2, dim=96, dtype=torch.float32),
    Layer(heads=16, kv_heads=1, dim=128, page_size=96),
    Layer(heads=2, kv_heads=2, dim=16, page_size=32, window=50),
    Layer(window=130),
    Layer(window=7, dtype=torch.float32, page_size=128),
    Layer(heads=8, kv_heads=2, dim=256, page_size=32),
)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("context", [1, 2, 31, 33, 127, 128, 129, 300])
def test_prefill_matches_torch(native: Library, pool: Pool, layer: Layer, context: int) -> None:
    """Red if the causal limit, the window, a page border or a chunk border is off by one. The cache starts as NaN."""
    qkv = random_qkv(layer, context, seed=context)
    engine = Engine(native, pool, layer)
    out = engine.step([Row(qkv, 0, pages_for(context, layer.page_size, 3))])[0]
    expected = reference(layer, qkv)
    assert torch.allclose(out.float(), expected, atol=TOLERANCE[layer.dtype], rtol=TOLERANCE[layer.dtype])


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_any_chunking_of_a_prompt_gives_the_same_bits(native: Library, pool: Pool, layer: Layer) -> None:
    """Red if decode and prefill differ in any rounding, or garbage of a recycled page reaches a result."""
    context = 290
    qkv, pages = random_qkv(layer, context, seed=1), pages_for(context, layer.page_size, 1)
    whole = Engine(native, pool, layer).step([Row(qkv, 0, pages)])[0]
    for sizes in ((1,), (5,), (16, 1, 100), (127, 1, 2), (8,), (9,)):
        engine, done, outputs, turn = Engine(native, pool, layer), 0, [], 0
        while done < context:
            end = min(context, done + sizes[turn % len(sizes)])
            outputs += engine.step([Row(qkv[:end], done, pages)])
            done, turn = end, turn + 1
        assert torch.equal(torch.cat(outputs), whole), sizes


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_batch_of_prefill_and_decode_gives_the_bits_of_each_alone(native: Library, pool: Pool, layer: Layer) -> None:
    """Red if rows leak into each other or the batch changes an order of summation."""
    contexts, cached = [1, 260, 129, 40, 200], [0, 259, 120, 0, 100]
    sequences = [random_qkv(layer, context, seed=10 + i) for i, context in enumerate(contexts)]
    pages = [pages_for(context, layer.page_size, 12 * i) for i, context in enumerate(contexts)]
    together, alone = Engine(native, pool, layer), Engine(native, pool, layer)
    for qkv, done, where in zip(sequences, cached, pages, strict=True):
        if done:
            together.step([Row(qkv[:done], 0, where)])
            alone.step([Row(qkv[:done], 0, where)])
    rows = [Row(qkv, done, where) for qkv, done, where in zip(sequences, cached, pages, strict=True)]
    outputs = together.step(rows)
    for row, output in zip(rows, outputs, strict=True):
        assert torch.equal(alone.step([row])[0], output)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_shared_groups_give_the_same_bits_as_none(native: Library, pool: Pool, layer: Layer) -> None:
    """Red if a chunk read for a group differs from one read for a row, is skipped, or is counted twice."""
    shared_pages, tokens_new = 384 // layer.page_size, [1, 3, 30, 1, 2]
    prefix = random_qkv(layer, shared_pages * layer.page_size, seed=2)
    common = pages_for(len(prefix), layer.page_size, 0)
    rows = []
    for i, count in enumerate(tokens_new):
        tail = random_qkv(layer, count + 40 * i, seed=20 + i)
        qkv = torch.cat([prefix, tail])
        own = list(range(20 + 8 * i, 20 + 8 * i + -(-len(tail) // layer.page_size)))
        rows.append(Row(qkv, len(qkv) - count, common + own))

    def outputs(groups: list[tuple[list[int], int]]) -> torch.Tensor:
        engine = Engine(native, pool, layer)
        engine.step([Row(prefix, 0, common)])
        for row in rows:
            if row.num_cached > len(prefix):
                engine.step([replace(row, qkv=row.qkv[: row.num_cached], num_cached=len(prefix))])
        return torch.cat(engine.step(rows, groups))

    apart = outputs([])
    assert not apart.isnan().any()
    for groups in (
        [([0, 1, 2, 3, 4], shared_pages)],
        [([3, 0], shared_pages), ([1, 4], min(5, shared_pages))],
        [([2], 3)],
        [([0, 1], 0)],
    ):
        assert torch.equal(outputs(groups), apart), groups


@pytest.mark.parametrize("dtype", TYPES)
def test_many_rows_of_a_group_exceed_one_working_set(native: Library, pool: Pool, dtype: torch.dtype) -> None:
    """Red if the last query vectors of a large group are lost when the working set is flushed."""
    layer = Layer(dtype=dtype, page_size=32)
    prefix, common = random_qkv(layer, 256, seed=3), list(range(8))
    engine = Engine(native, pool, layer, num_pages=60)
    engine.step([Row(prefix, 0, common)])
    rows = [Row(torch.cat([prefix, random_qkv(layer, 1, seed=i)]), 256, [*common, 10 + i]) for i in range(45)]
    assert torch.equal(torch.cat(engine.step(rows, [(list(range(45)), 8)])), torch.cat(engine.step(rows)))


@pytest.mark.parametrize("dtype", TYPES)
def test_rewriting_the_last_even_token_keeps_its_pair_finite(native: Library, pool: Pool, dtype: torch.dtype) -> None:
    """Red if the value that shares a lane with the newest one may hold NaN of a recycled page."""
    layer = Layer(dtype=dtype)
    qkv = random_qkv(layer, 3, seed=4)
    engine = Engine(native, pool, layer)
    assert not engine.step([Row(qkv, 0, [5])])[0].isnan().any()
    assert not engine.step([Row(qkv, 2, [5])])[0].isnan().any()


@pytest.mark.parametrize("dtype", TYPES)
def test_kv_write_lands_where_the_layout_says(native: Library, pool: Pool, dtype: torch.dtype) -> None:
    """Red if keys or values of a token are written to another slot, head or component."""
    layer = Layer(dtype=dtype, page_size=64)
    qkv = random_qkv(layer, 150, seed=5)
    engine = Engine(native, pool, layer)
    pages = [9, 2, 30]
    engine.step([Row(qkv, 0, pages)])
    keys, values = unpack_pages(
        engine.cache[pages], num_kv_heads=layer.kv_heads, head_dim=layer.dim, page_size=layer.page_size
    )
    _, k, v = qkv.split([9 * 64, 3 * 64, 3 * 64], dim=1)
    rotated = rotate(k.float().view(150, 3, 64), layer.inv_freq)
    assert torch.equal(values.flatten(0, 1)[:150], v.view(150, 3, 64))
    assert torch.allclose(keys.flatten(0, 1)[:150].float(), rotated, atol=1e-6, rtol=8e-3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_q_and_k_norms(native: Library, pool: Pool, dtype: torch.dtype, dim: int) -> None:
    """Red if a head is normalized after rotation, with the other norm's weight, or v is touched (Qwen3)."""
    layer = Layer(heads=4, kv_heads=2, dim=dim, dtype=dtype)
    qkv = random_qkv(layer, 40, seed=6)
    q_norm, k_norm = torch.rand(dim) + 0.5, torch.rand(dim) + 0.5
    q = torch.empty(40, 4 * dim, dtype=dtype)
    cache = torch.zeros(2, page_elements(2, dim, 32), dtype=dtype)
    tape = Tape(native, pool)
    positions = torch.arange(40, dtype=torch.int32)
    where = {"positions": positions, "slots": positions, "inv_freq": layer.inv_freq}
    tape.rope_kv_write(qkv, q, cache, shape=layer.shape, **where, q_norm=q_norm, k_norm=k_norm, eps=1e-6)
    tape.run(Dims(40, 0, 1))

    def normalized(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x.float().view(40, -1, dim)
        return rotate(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight, layer.inv_freq)

    raw_q, raw_k, raw_v = qkv.split([4 * dim, 2 * dim, 2 * dim], dim=1)
    keys, values = unpack_pages(cache, num_kv_heads=2, head_dim=dim, page_size=32)
    close = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-5, "atol": 1e-4}
    assert torch.allclose(q.float().view(40, 4, dim), normalized(raw_q, q_norm), **close)
    assert torch.allclose(keys.flatten(0, 1)[:40].float(), normalized(raw_k, k_norm), **close)
    assert torch.equal(values.flatten(0, 1)[:40], raw_v.view(40, 2, dim))


@pytest.mark.parametrize("dtype", TYPES)
def test_pages_pack_and_unpack(dtype: torch.dtype) -> None:
    """Red if the two directions of the plain layout disagree."""
    keys, values = torch.randn(3, 64, 2, 48).to(dtype), torch.randn(3, 64, 2, 48).to(dtype)
    cache = pack_pages(keys, values)
    assert cache.shape == (3, page_elements(2, 48, 64))
    again = unpack_pages(cache, num_kv_heads=2, head_dim=48, page_size=64)
    assert torch.equal(again[0], keys)
    assert torch.equal(again[1], values)


def test_a_negative_slot_writes_nothing(native: Library, pool: Pool) -> None:
    """Red if padding tokens touch the cache."""
    layer = Layer()
    cache = torch.zeros(2, page_elements(3, 64, 32), dtype=torch.bfloat16)
    q = torch.empty(1, 576, dtype=torch.bfloat16)
    tape = Tape(native, pool)
    zero, nowhere = torch.zeros(1, dtype=torch.int32), torch.full((1,), -1, dtype=torch.int32)
    tape.rope_kv_write(
        random_qkv(layer, 1, seed=7),
        q,
        cache,
        shape=layer.shape,
        positions=zero,
        slots=nowhere,
        inv_freq=layer.inv_freq,
    )
    tape.run(Dims(1, 0, 1))
    assert not cache.any()
