"""The KV cache of one layer as the native kernels lay it out (native/kv_layout.h), with plain packing for tests.

cache[num_pages, page_elements]: per page and kv head, the keys of all S tokens, then their values
bfloat16   K [S/16][d/2][16 tokens][2]    V [S/2][d][2 tokens]
float32    K [S/16][d][16 tokens]         V [S][d]
"""

from __future__ import annotations

import torch

PAGE_SIZE_MULTIPLE = 32


def page_elements(num_kv_heads: int, head_dim: int, page_size: int) -> int:
    """Numbers in one page of one layer. ValueError if the kernels cannot use such pages."""
    if page_size % PAGE_SIZE_MULTIPLE or page_size < 1:
        raise ValueError(f"page_size must be a multiple of {PAGE_SIZE_MULTIPLE}, not {page_size}")
    if head_dim % 16:
        raise ValueError(f"head_dim must be a multiple of 16, not {head_dim}")
    return 2 * num_kv_heads * head_dim * page_size


def pack_pages(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Plain keys and values [pages, S, K, d] to the cache [pages, page_elements]."""
    pages, size, heads, dim = keys.shape
    step = 2 if keys.dtype == torch.bfloat16 else 1
    k = keys.view(pages, size // 16, 16, heads, dim // step, step).permute(0, 3, 1, 4, 2, 5)
    v = values.view(pages, size // step, step, heads, dim).permute(0, 3, 1, 4, 2)
    halves = (k.reshape(pages, heads, 1, size * dim), v.reshape(pages, heads, 1, size * dim))
    return torch.cat(halves, dim=2).reshape(pages, -1).contiguous()


def unpack_pages(
    cache: torch.Tensor, *, num_kv_heads: int, head_dim: int, page_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of pack_pages: keys and values [pages, S, K, d]."""
    pages = cache.shape[0]
    step = 2 if cache.dtype == torch.bfloat16 else 1
    halves = cache.view(pages, num_kv_heads, 2, page_size * head_dim)
    k = halves[:, :, 0].view(pages, num_kv_heads, page_size // 16, head_dim // step, 16, step)
    v = halves[:, :, 1].view(pages, num_kv_heads, page_size // step, head_dim, step)
    keys = k.permute(0, 2, 4, 1, 3, 5).reshape(pages, page_size, num_kv_heads, head_dim)
    values = v.permute(0, 2, 4, 1, 3).reshape(pages, page_size, num_kv_heads, head_dim)
    return keys, values
