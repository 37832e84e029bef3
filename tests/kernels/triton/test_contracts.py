"""The generic test: every registered CUDA implementation of every op against the op's reference, on its own examples.

Red when an op joins the vocabulary without a kernel, or a kernel computes anything else than its op's contract says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from phloem.graph.lower.cuda import REGISTRY
from phloem.graph.lower.device import TAKE_SHAPE
from phloem.graph.ops.contract import Op
from phloem.graph.ops.vocabulary import FUSED_OPS, LOWERED_OPS, QUANTIZED_OPS
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.implementations import INVARIANT, NAME
from phloem.kernels.triton.table import INVARIANT as INVARIANT_FUNCTIONS
from phloem.kernels.triton.table import functions_on

DEVICE_OPS = {**LOWERED_OPS, **QUANTIZED_OPS, **FUSED_OPS}
TABLES: dict[str, Any] = {
    NAME: functions_on(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    INVARIANT: INVARIANT_FUNCTIONS,
}
"""By implementation name: the functions by op name."""

CASES = [
    pytest.param(op, each.name, dtype, index, id=f"{op.name}-{each.name}-{str(dtype).removeprefix('torch.')}-{index}")
    for op in DEVICE_OPS.values()
    for each in REGISTRY.candidates(op.name)
    if each.name in TABLES
    for dtype in (torch.bfloat16, torch.float16)
    for index in range(len(list(op.examples(torch.Generator(), dtype))))
]


def test_every_lowered_op_has_an_implementation() -> None:
    assert set(REGISTRY.ops()) == set(DEVICE_OPS) == set(TABLES[NAME])


@pytest.mark.parametrize(("op", "name", "dtype", "index"), CASES)
def test_implementation_equals_reference(
    device: torch.device, op: Op, name: str, dtype: torch.dtype, index: int
) -> None:
    if (op.name in TAKE_SHAPE or name == INVARIANT) and (dtype, device.type) == (torch.bfloat16, "cpu"):
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices as if they were integers")
    if op.name == "linear_fp8" and device.type == "cpu":
        pytest.skip("the interpreter multiplies 8-bit floats as if they were integers, and the library needs a GPU")
    seed = int(torch.randint(1 << 30, ()).item())
    example = [_on(device, each) for each in list(op.examples(torch.Generator().manual_seed(seed), dtype))[index]]
    ours = [each.clone() if isinstance(each, torch.Tensor) else each for each in example]
    function: Callable[..., Any] = TABLES[name][op.name]
    actual = function(*ours, shape=_shape(op, example)) if op.name in TAKE_SHAPE else function(*ours)
    expected = op(*example)
    pairs = list(zip(*(out if isinstance(out, tuple) else (out,) for out in (actual, expected)), strict=True))
    if "rope" in op.name:
        cache = list(op.signature.parameters).index("kv_cache")
        pairs.append((ours[cache], example[cache]))
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


def _shape(op: Op, example: list[Any]) -> AttentionShape:
    """What the host of a step would know of an example."""
    named = dict(zip(op.signature.parameters, example))
    counts = (named["query_start"][1:] - named["query_start"][:-1]).tolist()
    num_decode_rows = next((index for index, count in enumerate(counts) if count != 1), len(counts))
    return AttentionShape(
        num_rows=len(counts),
        num_tokens=sum(counts),
        num_decode_rows=num_decode_rows,
        max_query_len=max(counts),
        max_context_len=int(named["context_len"].max()),
        num_shared=len(named["shared_start"]) - 1,
    )
