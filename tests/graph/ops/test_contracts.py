"""Every op keeps its own contract: the reference runs on the examples and returns what the shape rule says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from phloem.graph.ops.contract import Op, ShapeError, Spec
from phloem.graph.ops.lowered import add_rms_norm, paged_attention, rope_kv_write, select_rows
from phloem.graph.ops.model import attention, embed, heads, linear, rms_norm, rope
from phloem.graph.ops.vocabulary import LOWERED_OPS, MODEL_OPS, OPS, QUANTIZED_OPS

DTYPES = (torch.float32, torch.bfloat16)


def examples(op: Op, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    return list(op.examples(torch.Generator().manual_seed(0), dtype))


def as_spec(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return Spec(tuple(value.shape), "float32" if value.dtype == torch.float32 else "act")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_reference_and_shape_rule_agree(op: Op, dtype: torch.dtype) -> None:
    """Red if a reference fails on its own examples, is not finite, or has another shape than its rule says."""
    cases = examples(op, dtype)
    assert cases
    for args in cases:
        assert len(args) == len(op.signature.parameters) or op in (linear, attention)
        specs = [as_spec(arg) for arg in args]
        result = op(*args)
        rule = op.shape(*specs)
        results, rules = (x if isinstance(x, tuple) else (x,) for x in (result, rule))
        assert [tuple(r.shape) for r in results] == [r.shape for r in rules]
        assert all(torch.isfinite(r).all() for r in results)
        assert set(op.tolerance) >= {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_examples_are_reproducible(op: Op) -> None:
    """Red if an example depends on anything but its generator."""
    for once, again in zip(examples(op, torch.float32), examples(op, torch.float32), strict=True):
        for a, b in zip(once, again, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_vocabularies_are_the_contract() -> None:
    """Red if an op is renamed: kernels register by these names."""
    assert set(LOWERED_OPS) == {
        "embed", "rms_norm", "add_rms_norm", "linear", "rope_kv_write", "paged_attention", "silu_mul", "select_rows",
    }  # fmt: skip
    assert set(QUANTIZED_OPS) == {"linear_fp8"}
    assert set(MODEL_OPS) == {"embed", "rms_norm", "linear", "heads", "rope", "attention", "swiglu", "moe"}


def test_a_call_on_proxies_is_one_node_with_complete_positional_arguments() -> None:
    """Red if tracing looks into an op, or a default or keyword is left out of the node."""

    class Module(nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor) -> Any:
            return linear(x, weight_NK=w)

    x, w, call, _ = fx.Tracer().trace(Module()).nodes
    assert call.target is linear
    assert call.args == (x, w, None, False)
    assert not call.kwargs


MISFITS = {
    "embed: ids of two dims": lambda: embed.shape(Spec(("T", 2), "int32"), Spec((9, 4), "weight")),
    "rms_norm: other width": lambda: rms_norm.shape(Spec(("T", 4)), Spec((5,)), 1e-5),
    "linear: other width": lambda: linear.shape(Spec(("T", 4)), Spec((9, 5)), None, False),
    "linear: other bias": lambda: linear.shape(Spec(("T", 4)), Spec((9, 4)), Spec((8,)), False),
    "heads: not whole": lambda: heads.shape(Spec(("T", 10)), 4),
    "rope: other frequencies": lambda: rope.shape(Spec(("T", 2, 8)), Spec(("T",)), Spec((8,))),
    "rope: other tokens": lambda: rope.shape(Spec(("T", 2, 8)), Spec(("L",)), Spec((4,))),
    "attention: uneven groups": lambda: attention.shape(*(Spec(("T", n, 8)) for n in (5, 2, 2)), 1.0, None),
    "add_rms_norm: residual not float32": lambda: add_rms_norm.shape(Spec(("T", 4)), Spec(("T", 4)), Spec((4,)), 1e-5),
    "rope_kv_write: no query heads": lambda: rope_kv_write.shape(
        Spec(("T", 32)), None, None, 0.0, Spec(("T",)), Spec(("T",)), Spec((4,)), Spec(("P", 2, "S", 2, 8))
    ),
    "rope_kv_write: one norm": lambda: rope_kv_write.shape(
        Spec(("T", 48)), Spec((8,)), None, 0.0, Spec(("T",)), Spec(("T",)), Spec((4,)), Spec(("P", 2, "S", 2, 8))
    ),
    "paged_attention: other head size": lambda: paged_attention.shape(
        Spec(("T", 4, 8)), Spec(("P", 2, "S", 2, 16)), *[Spec(("R",))] * 6, 1.0, None
    ),
    "select_rows: two-dimensional index": lambda: select_rows.shape(Spec(("T", 4)), Spec(("L", 1))),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_shape_rules_refuse_what_does_not_fit(misfit: str) -> None:
    """Red if a rule lets inputs through that its reference could not take, or would take wrongly."""
    with pytest.raises(ShapeError):
        MISFITS[misfit]()
