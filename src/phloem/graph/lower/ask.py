"""A node of a lowered graph as the registry asks about it."""

from __future__ import annotations

import torch
from torch import fx

from phloem.graph.ir import spec_of
from phloem.graph.ops.contract import Op
from phloem.kernels.spec import Call

TOUCH_A_CACHE = ("rope_kv_write", "paged_attention", "rope_attention")
"""Ops with a layer's cache among their arguments."""


def call_of(
    node: fx.Node, *, activation: torch.dtype, storage: str, page_size: int, batch_invariant: bool = False
) -> Call:
    """What a node's op is called with: types, and for ops that touch a cache its sizes."""
    assert isinstance(node.target, Op)
    sizes: dict[str, int] = {}
    if node.target.name in TOUCH_A_CACHE:
        cache = next(source for source in node.all_input_nodes if str(source.target).startswith("kv_cache"))
        *_, num_kv_heads, head_dim = spec_of(cache).shape
        width = spec_of(node).shape[-1]
        assert isinstance(num_kv_heads, int)
        assert isinstance(head_dim, int)
        assert isinstance(width, int)
        sizes = {"page_size": page_size, "head_dim": head_dim}
        if node.target.name != "rope_kv_write":
            sizes["heads_per_kv_head"] = width // (head_dim * num_kv_heads)
    return Call(node.target.name, type_name(activation), storage=storage, sizes=sizes, batch_invariant=batch_invariant)


def type_name(dtype: torch.dtype) -> str:
    """bfloat16, float32 ..."""
    return str(dtype).removeprefix("torch.")
