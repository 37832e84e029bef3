"""Steps for the attention tests: random queries, keys and values in scattered pages, NaN wherever nobody may look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from phloem.graph.ops.lowered import paged_attention as op
from phloem.kernels.triton.attention_shape import AttentionShape

Group = tuple[Sequence[int], int]  # rows, and how many leading pages they share

# Largest error over the largest value: weights and results are rounded to the activation type once each.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@dataclass(frozen=True)
class Step:
    """One call of paged_attention; the reference has numbers where the kernels must not look."""

    q: torch.Tensor
    kv_cache: torch.Tensor
    meta: dict[str, torch.Tensor]
    reference_cache: torch.Tensor
    reference_table: torch.Tensor
    window: int | None
    shape: AttentionShape

    def run(self, **changes: object) -> torch.Tensor:
        """The kernels' answer; `changes` replace fields of the shape."""
        from phloem.kernels.triton.attention import paged_attention

        shape = AttentionShape(**{**vars(self.shape), **changes})  # type: ignore[arg-type]
        scale = self.q.shape[2] ** -0.5
        return paged_attention(self.q, self.kv_cache, *self.meta.values(), scale, self.window, shape=shape)

    def reference(self) -> torch.Tensor:
        """The op's own answer, from the same numbers in float32."""
        meta = {**self.meta, "block_table": self.reference_table}
        scale = self.q.shape[2] ** -0.5
        return op(self.q.float(), self.reference_cache.float(), *meta.values(), scale, self.window)

    def check(self, **changes: object) -> None:
        got, want = self.run(**changes), self.reference()
        assert got.dtype == self.q.dtype
        assert bool(torch.isfinite(got).all()), "every token is written, and nothing unused was read"
        start, context = self.meta["query_start"].tolist(), self.meta["context_len"].tolist()
        for row, (begin, end) in enumerate(zip(start, start[1:])):
            if begin < end and context[row]:
                scale = max(float(want[begin:end].abs().max()), 1e-3)
                error = float((got[begin:end].float() - want[begin:end]).abs().max()) / scale
                assert error < TOLERANCE[self.q.dtype], f"row {row}: {error:.2e}"
            else:
                assert not bool(got[begin:end].any()), f"row {row} has no context"
        assert not bool(got[start[-1] :].any()), "tokens of no row are zeros"


def make_step(
    contexts: Sequence[int],
    queries: Sequence[int],
    *,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    window: int | None = None,
    groups: Sequence[Group] = (),
    num_decode_rows: int | None = None,
    spare_tokens: int = 0,
    seed: int = 0,
    cache_dtype: torch.dtype | None = None,
) -> Step:
    """Rows of `contexts` tokens whose last `queries` are asked about; `spare_tokens` belong to no row.

    For the kernels, keys before every window are NaN, and of a group only the first row has the shared pages in its
    table: the others have NaN there.
    """
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_heads, num_kv_heads = len(contexts), *heads
    counts = [-(-context // page_size) for context in contexts]
    order = (torch.randperm(sum(counts) + 1, generator=generator) + 1).int()  # page 0 stays NaN
    table = torch.zeros(num_rows, max([*counts, 1]) + 2, dtype=torch.int32)
    for row, (count, taken) in enumerate(zip(counts, torch.tensor([0, *counts]).cumsum(0).tolist())):
        table[row, :count] = order[taken : taken + count]
    reference_table = table.clone()
    for rows, pages in groups:
        for row in rows[1:]:
            reference_table[row, :pages] = table[rows[0], :pages]
            if queries[row] == 1:
                table[row, :pages] = 0
            else:
                table[row, :pages] = table[rows[0], :pages]
    cache = torch.full((len(order) + 1, 2, page_size, num_kv_heads, head_dim), float("nan"))
    for row, context in enumerate(contexts):
        for index in range(counts[row]):
            held = min(page_size, context - index * page_size)
            numbers = torch.randn(2, held, num_kv_heads, head_dim, generator=generator)
            cache[int(reference_table[row, index]), :, :held] = numbers
    hidden = cache.clone()
    if window is not None and not groups:
        for row, (context, count) in enumerate(zip(contexts, queries)):
            for key in range(max(0, context - count - window + 1) if count else context):
                hidden[int(table[row, key // page_size]), :, key % page_size] = float("nan")
    num_tokens = sum(queries) + spare_tokens
    if num_decode_rows is None:
        num_decode_rows = next((row for row, count in enumerate(queries) if count > 1), num_rows)
    lists = {
        "query_start": torch.tensor([0, *queries]).cumsum(0),
        "context_len": torch.tensor(contexts),
        "block_table": table,
        "shared_start": torch.tensor([0, *(len(rows) for rows, _ in groups)]).cumsum(0),
        "shared_rows": torch.tensor([row for rows, _ in groups for row in rows]),
        "shared_pages": torch.tensor([pages for _, pages in groups]),
    }
    return Step(
        q=torch.randn(num_tokens, num_heads, head_dim, generator=generator).to(device, dtype),
        kv_cache=hidden.to(device, cache_dtype or dtype),
        reference_cache=cache.to(device, cache_dtype or dtype),
        meta={name: values.to(device, torch.int32) for name, values in lists.items()},
        reference_table=reference_table.to(device),
        window=window,
        shape=AttentionShape(
            num_rows, num_tokens, num_decode_rows, max(queries), 2 * max(contexts), num_shared=len(groups)
        ),
    )
