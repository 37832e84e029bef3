"""The generic test: every registered CUDA implementation of every op against the op's reference, on its own examples.

Red when an op joins the vocabulary without a kernel, or a kernel computes anything else than its op's contract says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from phloem.graph.lower.cuda import REGISTRY
from phloem.graph.ops.contract import Op
from phloem.graph.ops.vocabulary import LOWERED_OPS
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.implementations import NAME
from phloem.kernels.triton.table import FUNCTIONS

TABLES: dict[str, Any] = {NAME: FUNCTIONS}
"""By implementation name: the functions by op name."""

CASES = [
    pytest.param(op, each.name, dtype, index, id=f"{op.name}-{each.name}-{str(dtype).removeprefix('torch.')}-{index}")
    for op in LOWERED_OPS.values()
    for each in REGISTRY.candidates(op.name)
    if each.name in TABLES
    for dtype in (torch.bfloat16, torch.float16)
    for index in range(len(list(op.examples(torch.Generator(), dtype))))
]


def test_every_lowered_op_has_an_implementation() -> None:
    assert set(REGISTRY.ops()) == set(LOWERED_OPS) == set(FUNCTIONS)


@pytest.mark.parametrize(("op", "name", "dtype", "index"), CASES)
def test_implementation_equals_reference(
    device: torch.device, op: Op, name: str, dtype: torch.dtype, index: int
) -> None:
    if (op.name, dtype, device.type) == ("paged_attention", torch.bfloat16, "cpu"):
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices as if they were integers")
    seed = int(torch.randint(1 << 30, ()).item())
    example = [_on(device, each) for each in list(op.examples(torch.Generator().manual_seed(seed), dtype))[index]]
    ours = [each.clone() if isinstance(each, torch.Tensor) else each for each in example]
    function: Callable[..., Any] = TABLES[name][op.name]
    actual = function(*ours, shape=_shape(example)) if op.name == "paged_attention" else function(*ours)
    expected = op(*example)
    pairs = list(zip(*(out if isinstance(out, tuple) else (out,) for out in (actual, expected)), strict=True))
    if op.name == "rope_kv_write":
        pairs.append((ours[-1], example[-1]))  # the cache
    tolerance = op.tolerance.get(dtype, op.tolerance[torch.bfloat16])
    for mine, reference in pairs:
        assert mine.dtype == reference.dtype
        assert mine.shape == reference.shape
        scale = reference.abs().max().item() if reference.numel() else 0.0
        atol = tolerance * max(scale, 1e-6)
        torch.testing.assert_close(
            mine.float(), reference.float(), rtol=0, atol=atol, msg=lambda m: f"seed {seed}: {m}"
        )


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _shape(example: list[Any]) -> AttentionShape:
    """What the host of a step would know of a paged_attention example."""
    q, _, query_start, context_len, _, shared_start = example[:6]
    counts = (query_start[1:] - query_start[:-1]).tolist()
    num_decode_rows = next((index for index, count in enumerate(counts) if count != 1), len(counts))
    return AttentionShape(
        num_rows=len(counts),
        num_tokens=len(q),
        num_decode_rows=num_decode_rows,
        max_query_len=max(counts),
        max_context_len=int(context_len.max()),
        num_shared=len(shared_start) - 1,
    )
