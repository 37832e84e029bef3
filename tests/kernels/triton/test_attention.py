"""Paged attention against the op's reference on small steps; on a CPU through Triton's interpreter.

tests/gpu/test_attention.py has the large ones: every head size and ratio in the types that a GPU serves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from phloem.kernels.triton.attention_shape import FIXED_CHUNK
from tests.kernels.triton.attention_cases import make_step

EDGES = (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200)  # around a page, a block and two blocks


@pytest.fixture
def _bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter holds bfloat16 as bits and multiplies the bits: give it the numbers."""
    if torch.cuda.is_available():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def numbers(handle: Any) -> Any:
        if handle.data.dtype != np.uint16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, numbers(a), numbers(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.parametrize("page_size", [16, 64, 128])
def test_decode_around_every_boundary(page_size: int, device: torch.device) -> None:
    """Red if a block, a page or a share of the work is off by one, or a key from beyond the context is used."""
    make_step(EDGES, [1] * len(EDGES), page_size=page_size, device=device).check()


@pytest.mark.parametrize("window", [1, 16, 64, 100])
def test_decode_in_a_window(window: int, device: torch.device) -> None:
    """Red if the window's first key is off by one, or blocks before it are still counted as work of the row."""
    make_step(EDGES, [1] * len(EDGES), window=window, device=device).check()


@pytest.mark.parametrize(("ratio", "head_dim"), [(1, 96), (2, 128), (3, 64), (5, 64), (7, 256), (8, 64)])
def test_heads(ratio: int, head_dim: int, device: torch.device) -> None:
    """Red if query heads are packed for powers of two only, or a padded head dim reaches its neighbour."""
    make_step([70, 33, 5], [1, 1, 1], heads=(2 * ratio, 2), head_dim=head_dim, device=device).check()
    make_step([70, 33, 5], [1, 33, 2], heads=(2 * ratio, 2), head_dim=head_dim, page_size=64, device=device).check()


@pytest.mark.parametrize("window", [None, 30])
def test_few_queries_a_row(window: int | None, device: torch.device) -> None:
    """Red if a drafted token sees the ones after it; rows without queries among them are skipped."""
    make_step([200, 67, 40, 5, 0], [3, 0, 2, 5, 0], window=window, device=device).check()


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("page_size", [16, 64, 128])
def test_ragged_prompts(page_size: int, window: int | None, device: torch.device) -> None:
    """Red if tiles of several rows mix, cached keys are forgotten, or the causal edge is off by one."""
    contexts, queries = [90, 31, 70, 130, 1, 128], [1, 1, 70, 33, 1, 128]
    make_step(contexts, queries, page_size=page_size, window=window, device=device).check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("_bfloat16_products")
def test_half_types(dtype: torch.dtype, device: torch.device) -> None:
    """Red if sums or the softmax are kept in less than float32."""
    make_step([300, 65, 140], [1, 1, 70], dtype=dtype, device=device).check()


@pytest.mark.parametrize("window", [None, 150])
def test_shared_prefix_is_read_through_the_first_row(window: int | None, device: torch.device) -> None:
    """Red if rows of a group read the prefix by their own tables (NaN there), or pieces are weighted wrongly.

    Row 4 has two queries and is in a group too: it must ignore the hint. Row 1 is in none.
    """
    groups = [([0, 2, 4], 8), ([5, 3], 2)]
    contexts, queries = [200, 90, 129, 61, 140, 300], [1, 1, 1, 1, 2, 1]
    order = [0, 1, 2, 3, 5, 4]  # rows of one query lead
    renamed = [([order.index(row) for row in rows], pages) for rows, pages in groups]
    step = make_step(
        [contexts[row] for row in order], [queries[row] for row in order],
        groups=renamed, window=window, heads=(6, 2), device=device,
    )  # fmt: skip
    step.check()


def test_group_of_more_than_one_tile(device: torch.device) -> None:
    """Red if the second tile of a group takes the first one's rows; entries after the last group are not read."""
    rows, stale = 25, torch.full((7,), 3, dtype=torch.int32, device=device)
    contexts, groups = [70 + row for row in range(rows)], [(range(rows), 4)]
    step = make_step(contexts, [1] * rows, heads=(6, 2), device=device, groups=groups)
    step.meta["shared_rows"] = torch.cat([step.meta["shared_rows"], stale])
    step.check(max_group_rows=rows)


def test_padding_of_a_bucket(device: torch.device) -> None:
    """Red if rows without context or tokens without a row are left unwritten (the next layer would read NaN)."""
    for queries in ([1, 1, 1, 0], [1, 1, 3, 0], [1, 1, 90, 0]):
        torch.full((sum(queries) + 9, 4 * 64), float("nan"), device=device)  # likely to be the next allocation
        make_step([40, 0, 90, 0], queries, num_decode_rows=2, spare_tokens=9, device=device).check()
    make_step([0, 0], [1, 70], device=device).check()


@pytest.mark.parametrize("window", [None, 100])
def test_cache_of_8_bit_floats(window: int | None, device: torch.device) -> None:
    """Red if 8-bit numbers are multiplied as something else, or what lies beyond a context is read as a number."""
    kind = {"dtype": torch.float16, "cache_dtype": torch.float8_e4m3fn, "heads": (6, 2), "device": device}
    make_step([300, 65, 140], [1, 1, 70], window=window, **kind).check()
    make_step([200, 90, 61], [1, 1, 1], groups=[([0, 2], 2)], window=window, **kind).check()


@pytest.mark.parametrize("window", [None, 1500])
def test_deterministic_tokens_do_not_depend_on_chunks(window: int | None, device: torch.device) -> None:
    """Red if a token that is computed in a chunk sums its keys otherwise than one that is computed alone."""
    context, count = 2 * FIXED_CHUNK + 100, 70
    kind = {"heads": (2, 1), "dtype": torch.float16, "device": device, "window": window}
    whole = make_step([context], [count], num_decode_rows=0, **kind)
    whole.check(deterministic=True)
    in_chunk = whole.run(deterministic=True)
    for index in (0, 20, count - 1):
        token = whole.meta | {
            "query_start": torch.tensor([0, 1], device=device).int(),
            "context_len": torch.tensor([context - count + 1 + index], device=device).int(),
        }
        one = replace(whole, q=whole.q[index : index + 1], meta=token, shape=replace(whole.shape, num_tokens=1))
        alone = one.run(num_decode_rows=1, max_query_len=1, deterministic=True)
        assert torch.equal(alone[0], in_chunk[index]), f"token {index}"


def test_deterministic_rows_do_not_depend_on_the_batch(device: torch.device) -> None:
    """Red if a row's keys are split anywhere but at multiples of FIXED_CHUNK."""
    contexts = [FIXED_CHUNK + 300, 70, 2 * FIXED_CHUNK, 500]
    step = make_step(contexts, [1] * 4, heads=(2, 1), device=device)
    step.check(deterministic=True)
    together = step.run(deterministic=True)
    for row in range(4):
        alone = step.meta | {
            "query_start": torch.tensor([0, 1], device=device).int(),
            "context_len": step.meta["context_len"][row : row + 1],
            "block_table": step.meta["block_table"][row : row + 1],
        }
        one = replace(step, q=step.q[row : row + 1], meta=alone)
        result = one.run(num_rows=1, num_tokens=1, num_decode_rows=1, max_query_len=1, deterministic=True)
        assert torch.equal(result[0], together[row])
