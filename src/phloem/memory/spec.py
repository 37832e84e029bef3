"""What one layer keeps between steps, as data. The ledger counts pages; the pool turns this into bytes."""

from __future__ import annotations

import msgspec


class FullAttention(msgspec.Struct, frozen=True, tag=True):
    """Keys and values of every token. `window` limits how far back a query looks, in tokens, itself included."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None

    def elements_per_token(self) -> int:
        """Numbers kept for one token: a key and a value for every KV head."""
        return 2 * self.num_kv_heads * self.head_dim


LayerState = FullAttention


def bytes_per_page(layers: tuple[LayerState, ...], *, page_size: int, bytes_per_element: int) -> int:
    """Bytes that one page of `page_size` tokens takes over all `layers`."""
    return page_size * bytes_per_element * sum(layer.elements_per_token() for layer in layers)
