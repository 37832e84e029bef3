"""The function of each implementation that implementations.py lists, by op name. Importing this needs triton.

Each takes its op's own positional arguments and returns new tensors; attention also takes `shape`, see
attention_shape.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from phloem.kernels.triton import invariant
from phloem.kernels.triton.activation import silu_mul
from phloem.kernels.triton.attention import paged_attention
from phloem.kernels.triton.fp8 import linear_fp8
from phloem.kernels.triton.gather import embed, select_rows
from phloem.kernels.triton.linear import linear
from phloem.kernels.triton.norm import add_rms_norm, rms_norm
from phloem.kernels.triton.rope import rope_kv_write
from phloem.kernels.triton.row_attention import RopeAttention
from phloem.kernels.triton.row_linear import linear_add, norm_gated_linear, norm_linear

FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "embed": embed,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "silu_mul": silu_mul,
        "select_rows": select_rows,
        "linear": linear,
        "linear_fp8": linear_fp8,
        "rope_kv_write": rope_kv_write,
        "paged_attention": paged_attention,
        "norm_linear": norm_linear,
        "norm_gated_linear": norm_gated_linear,
        "linear_add": linear_add,
    }
)
"""Of the implementations called "triton", those that keep nothing."""
INVARIANT: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"linear": invariant.linear, "linear_fp8": invariant.linear_fp8}
)
"""Of those called "invariant"."""


def functions_on(device: torch.device) -> Mapping[str, Callable[..., Any]]:
    """All of the implementations called "triton", for one program at a time on `device`."""
    return {**FUNCTIONS, "rope_attention": RopeAttention(device)}
