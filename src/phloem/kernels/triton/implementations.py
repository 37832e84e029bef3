"""What the Triton kernels can do, as the registry asks: one implementation "triton" an op. Values only, no torch."""

from __future__ import annotations

from phloem.kernels.spec import Implementation, needs_at_most, needs_capability, needs_dtype, needs_multiple

NAME = "triton"
PRIORITY = 100

_CUDA = needs_capability("cuda", "needs a CUDA device")
_DTYPE = needs_dtype("bfloat16", "float16")
_HEADS = (needs_multiple("head_dim", 16), needs_at_most("head_dim", 256))


def implementations() -> tuple[Implementation, ...]:
    """Everything table.py has a function for. `linear` is cuBLAS through torch."""
    each_row = ("embed", "rms_norm", "add_rms_norm", "silu_mul", "select_rows", "linear")
    return (
        *(Implementation(op, NAME, (_CUDA, _DTYPE), PRIORITY) for op in each_row),
        Implementation("rope_kv_write", NAME, (_CUDA, _DTYPE, *_HEADS), PRIORITY),
        Implementation("paged_attention", NAME, (_CUDA, _DTYPE, *_HEADS), PRIORITY),
    )
