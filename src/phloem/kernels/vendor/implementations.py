"""What optional libraries can do, as the registry asks. Values only, no torch, nothing imported.

Preference as measured on an H200 (bench/gpu_attention.py): FlashAttention-3 for rows with many queries, our own kernels
for rows with one, so the implementation here is that pair and goes before ours alone.
"""

from __future__ import annotations

from importlib.util import find_spec

from phloem.kernels.spec import (
    Implementation,
    needs_at_most,
    needs_capability,
    needs_dtype,
    needs_multiple,
    needs_storage,
    varies_with_the_batch,
)

FLASH_ATTENTION3 = "flash-attention-3"
PRIORITY = 110


def capabilities() -> frozenset[str]:
    """Libraries that are installed, as capabilities of a machine."""
    found = find_spec("flash_attn_interface") is not None and find_spec("flash_attn_3") is not None
    return frozenset({FLASH_ATTENTION3} if found else ())


def implementations() -> tuple[Implementation, ...]:
    """Everything table.py has a function for."""
    requirements = (
        needs_capability("cuda", "needs a CUDA device"),
        needs_capability(FLASH_ATTENTION3, "needs FlashAttention-3 (pip install tokenspeed-fa3)"),
        needs_dtype("bfloat16", "float16"),
        needs_storage("bfloat16", "float16"),
        varies_with_the_batch(),
        needs_multiple("head_dim", 16),
        needs_at_most("head_dim", 256),
    )
    return (Implementation("paged_attention", "flash_attention3", requirements, PRIORITY),)
