"""What the native library can do, as the registry asks: one implementation "native" an op. Values only, no torch."""

from __future__ import annotations

from phloem.kernels.spec import (
    Implementation,
    Requirement,
    needs_at_most,
    needs_capability,
    needs_dtype,
    needs_multiple,
    needs_storage,
)

NAME = "native"
PRIORITY = 100

_LIBRARY = needs_capability("native-library", "needs the native library on a processor with AVX-512 BF16 and VNNI")
_DTYPE = needs_dtype("bfloat16", "float32")
_WEIGHTS = needs_storage("q4", "q8", "q8m", "q8h", "bf16", "f32")
_PLAIN_FLOATS = Requirement(
    "takes float32 weights only under float32 activations",
    lambda machine, call: call.storage != "f32" or call.dtype == "float32",
)
_PAGES = (needs_multiple("page_size", 32), needs_multiple("head_dim", 16), needs_at_most("head_dim", 256))
_GROUPS = needs_at_most("heads_per_kv_head", 96)


def implementations() -> tuple[Implementation, ...]:
    """Everything tape.py has a method for."""
    each_row = ("rms_norm", "add_rms_norm", "silu_mul", "select_rows")
    return (
        Implementation("embed", NAME, (_LIBRARY, _WEIGHTS), PRIORITY),
        *(Implementation(op, NAME, (_LIBRARY, _DTYPE), PRIORITY) for op in each_row),
        Implementation("linear", NAME, (_LIBRARY, _DTYPE, _WEIGHTS, _PLAIN_FLOATS), PRIORITY),
        Implementation("rope_kv_write", NAME, (_LIBRARY, _DTYPE, *_PAGES), PRIORITY),
        Implementation("paged_attention", NAME, (_LIBRARY, _DTYPE, *_PAGES, _GROUPS), PRIORITY),
        Implementation("argmax", NAME, (_LIBRARY,), PRIORITY),
    )
