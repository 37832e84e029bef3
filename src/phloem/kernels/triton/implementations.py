"""What the Triton kernels can do, as the registry asks: one implementation "triton" an op. Values only, no torch."""

from __future__ import annotations

from phloem.kernels.spec import (
    Implementation,
    needs_at_most,
    needs_capability,
    needs_dtype,
    needs_multiple,
    needs_storage,
    varies_with_the_batch,
)

NAME = "triton"
PRIORITY = 100
INVARIANT = "invariant"
"""Slower than PRIORITY's, and a row's bits do not depend on the other rows."""

_CUDA = needs_capability("cuda", "needs a CUDA device")
_DTYPE = needs_dtype("bfloat16", "float16")
_HEADS = (needs_multiple("head_dim", 16), needs_at_most("head_dim", 256))


def implementations() -> tuple[Implementation, ...]:
    """Everything table.py has a function for. `linear` and `linear_fp8` are libraries through torch."""
    each_row = ("embed", "rms_norm", "add_rms_norm", "silu_mul", "select_rows")
    linears = ("linear", "linear_fp8")
    fused = ("norm_linear", "norm_gated_linear", "linear_add")
    one_tile = (varies_with_the_batch(), needs_at_most("heads_per_kv_head", 16), needs_storage("bfloat16", "float16"))
    return (
        *(Implementation(op, NAME, (_CUDA, _DTYPE), PRIORITY) for op in each_row),
        *(Implementation(op, NAME, (_CUDA, _DTYPE, varies_with_the_batch()), PRIORITY) for op in linears),
        *(Implementation(op, INVARIANT, (_CUDA, _DTYPE), PRIORITY - 10) for op in linears),
        Implementation("rope_kv_write", NAME, (_CUDA, _DTYPE, *_HEADS), PRIORITY),
        Implementation("paged_attention", NAME, (_CUDA, _DTYPE, *_HEADS), PRIORITY),
        *(Implementation(op, NAME, (_CUDA, _DTYPE, varies_with_the_batch()), PRIORITY) for op in fused),
        Implementation("rope_attention", NAME, (_CUDA, _DTYPE, *_HEADS, *one_tile), PRIORITY),
    )
