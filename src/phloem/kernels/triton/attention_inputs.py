"""The tensors of one attention call as its kernels take them: strides, head counts and padded sizes in one place."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from phloem.kernels.triton.attention_shape import AttentionShape

_INTERPRETED_PROCESSORS = 4  # what the CPU interpreter pretends to have, so that tests split their work too
_LENGTHS = (16, 256, 1024, 4096)  # of vectors over rows; few, because each is compiled anew
_META = ["query_start", "context_len", "block_table", "row_prefix", "row_entry"]
_GROUPS = ["shared_start", "shared_rows", "shared_pages"]

# What changes from step to step and must not compile a kernel again because it happens to be 1 or a multiple of 16.
VARYING = [
    "table_stride", "num_rows", "num_all_rows", "num_tokens", "num_shares", "num_splits", "num_entries", "num_groups",
    "num_chunks", "queries", "first_row", "tiles_per_group", "window",
]  # fmt: skip
UNALIGNED = [*_META, *_GROUPS, "spans"]


@dataclass(frozen=True)
class AttentionInputs:
    """The arguments of paged_attention (graph/ops/lowered.py) with `shape`; q [T, H, d], kv_cache [P, 2, S, K, d].

    What is derived is kept: an eager step asks for it at every launch.
    """

    q: Tensor
    kv_cache: Tensor
    query_start: Tensor
    context_len: Tensor
    block_table: Tensor
    scale: float
    window: int | None
    shape: AttentionShape

    def __post_init__(self) -> None:
        assert self.q.is_contiguous(), "q is [T, H, d] in one piece"
        assert self.kv_cache.stride()[3:] == (self.head_dim, 1), "heads of a token lie side by side"
        assert self.page_size & (self.page_size - 1) == 0, "a page has a power of two of tokens"
        assert self.num_heads % self.num_kv_heads == 0, "query heads share KV heads evenly"

    @cached_property
    def num_heads(self) -> int:
        return self.q.shape[1]

    @cached_property
    def num_kv_heads(self) -> int:
        return self.kv_cache.shape[3]

    @cached_property
    def head_dim(self) -> int:
        return self.q.shape[2]

    @cached_property
    def dim_pad(self) -> int:
        """head_dim rounded up to what a tile can have."""
        return max(16, int(triton.next_power_of_2(self.head_dim)))

    @cached_property
    def page_size(self) -> int:
        return self.kv_cache.shape[2]

    @cached_property
    def ratio(self) -> int:
        """Query heads a KV head."""
        return self.num_heads // self.num_kv_heads

    @cached_property
    def kind(self) -> Hashable:
        """What compiled kernels depend on besides their constants (launch.py)."""
        unaligned = self.q.data_ptr() % 16 + self.kv_cache.data_ptr() % 16
        return self.q.device.index, self.q.dtype, self.kv_cache.dtype, self.cache_strides, unaligned

    @cached_property
    def cache_strides(self) -> tuple[int, int, int]:
        """Elements from a page to the next, from a key to its value, from a token to the next."""
        page, value, slot, _, _ = self.kv_cache.stride()
        return page, value, slot

    def empty_out(self) -> Tensor:
        """[T, H d] for the results."""
        return self.q.new_empty(self.q.shape[0], self.num_heads * self.head_dim)

    def cache_rows(self, block_n: int) -> TensorDescriptor | None:
        """The cache as rows of all its heads, for copies of block_n rows; None if a block can cross a page's end."""
        pages, _, slots, heads, dim = self.kv_cache.shape
        if slots < block_n or not self.kv_cache.is_contiguous():
            return None
        rows = self.kv_cache.view(pages * 2 * slots, heads * dim)
        return TensorDescriptor.from_tensor(rows, [block_n, self.dim_pad])

    @cached_property
    def scale_log2(self) -> float:
        """Factor of the scores when the softmax is taken in base 2."""
        return self.scale * math.log2(math.e)

    @cached_property
    def starts_early(self) -> bool:
        """Kernels may start while the one before drains: programmatic dependent launch, compute capability 9 on."""
        return _facts(self.q.device)[1]

    @cached_property
    def num_processors(self) -> int:
        """Streaming multiprocessors of the device."""
        return _facts(self.q.device)[0]

    def empty(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer on the device of the inputs; inside a captured graph it belongs to the graph's pool."""
        return torch.empty(size, dtype=dtype, device=self.q.device)


def vector_length(count: int) -> int:
    """Power of two that holds `count` rows, one of a few."""
    return next((length for length in _LENGTHS if count <= length), int(triton.next_power_of_2(count)))


@dataclass(frozen=True)
class FixedTile:
    """What decides the bits of a query in deterministic mode: queries and keys of a tile, and the warps that share it
    (with 64 queries a warp has whole rows of scores, and sums them in one order)."""

    tile_m: int
    block_n: int
    num_warps: int


def fixed_tile(inputs: AttentionInputs) -> FixedTile:
    """The one tile of deterministic mode, for every row of a model."""
    return FixedTile(64, 32 if inputs.dim_pad > 128 else 64, 4)


def tile_height(packed: int) -> int:
    """Rows of a tile that holds `packed` queries: the least of a matrix product, or a warpgroup's."""
    return 16 if packed <= 16 else 64


@cache
def _facts(device: torch.device) -> tuple[int, bool]:
    """(multiprocessors, whether kernels may start early): asked once, since every launch needs them."""
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS, False
    properties = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count), (properties.major, properties.minor) >= (9, 0)
