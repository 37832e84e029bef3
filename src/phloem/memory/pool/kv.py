"""The KV cache: one flat tensor a layer, indexed by page. What lies inside a page is the kernels' business."""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Sequence

import torch

from phloem.core.plan import PageCopy
from phloem.memory.spec import LayerState


class KvPool:
    """Owns the bytes of every page.

    `layers[i]` is `[num_pages, page_size * elements_per_token]`, contiguous, on `device`. Pages move whole, as words,
    so copying needs no knowledge of their layout or type. Fresh memory is mapped by the system on first use: a large
    pool costs nothing until its pages are written.
    """

    def __init__(
        self,
        *,
        layers: Sequence[LayerState],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_size = page_size
        self.num_pages = num_pages
        self.layers: tuple[torch.Tensor, ...] = tuple(
            _zeros(num_pages, page_size * layer.elements_per_token(), dtype=dtype, device=device) for layer in layers
        )

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy whole pages in every layer, all sources read before any target of the same call is written."""
        if not copies:
            return
        device = self.layers[0].device
        sources = torch.tensor([copy.source for copy in copies], device=device)
        targets = torch.tensor([copy.target for copy in copies], device=device)
        for layer in self.layers:
            words = layer.view(torch.int32)
            words[targets] = words[sources]


def _zeros(num_pages: int, elements: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed memory. On the host mapped by the system on first touch, where `torch.zeros` would write it all. In huge
    pages where there are any: first touches of small ones took a seventh of a 1,024-token prefill on two cores."""
    if device.type != "cpu":
        return torch.zeros(num_pages, elements, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_pages * elements * dtype.itemsize)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(num_pages, elements)
