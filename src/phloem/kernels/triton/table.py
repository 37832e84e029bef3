"""The function of each implementation that implementations.py lists, by op name. Importing this needs triton.

Each takes its op's own positional arguments and returns new tensors; `paged_attention` also takes `shape`, see
attention_shape.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from phloem.kernels.triton.activation import silu_mul
from phloem.kernels.triton.attention import paged_attention
from phloem.kernels.triton.gather import embed, select_rows
from phloem.kernels.triton.linear import linear
from phloem.kernels.triton.norm import add_rms_norm, rms_norm
from phloem.kernels.triton.rope import rope_kv_write

FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "embed": embed,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "silu_mul": silu_mul,
        "select_rows": select_rows,
        "linear": linear,
        "rope_kv_write": rope_kv_write,
        "paged_attention": paged_attention,
    }
)
