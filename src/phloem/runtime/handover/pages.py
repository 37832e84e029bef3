"""The bytes of pages, as a transfer sees them: whichever worker computes them, a page of a layer is so many bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phloem.parallel.transfer.link import Link, Piece, TransferError

PIECE_BYTES = 4 << 20
"""A piece is as many pages as fit in here, at least one."""


class PageBytes:
    """The pages of a pool on the host, by layer. Pages being read or written are leased: no step touches them."""

    def __init__(self, layers: Sequence[np.ndarray], *, page_size: int, fingerprint: str) -> None:
        self.layers = tuple(layers)  # each [num_pages, bytes] uint8, a view
        self.page_size = page_size
        self.fingerprint = fingerprint

    def bytes_of(self, layer: int, num_pages: int) -> int:
        """Bytes of so many pages of a layer."""
        return num_pages * int(self.layers[layer].shape[1])

    @property
    def piece_bytes(self) -> int:
        """Bytes of the largest piece."""
        return max(PIECE_BYTES, *(self.bytes_of(layer, 1) for layer in range(len(self.layers))))

    def read(self, layer: int, pages: Sequence[int]) -> memoryview:
        """A copy of their bytes."""
        return memoryview(self.layers[layer][np.asarray(pages)].reshape(-1))

    def write(self, layer: int, pages: Sequence[int], payload: memoryview) -> None:
        """Fill them."""
        rows = np.frombuffer(payload, np.uint8).reshape(len(pages), -1)
        self.layers[layer][np.asarray(pages)] = rows


def send_pages(link: Link, source: PageBytes, pages: Sequence[int], *, first_page: int) -> None:
    """Send `pages`, the prompt's pages from `first_page` on, one layer after another."""
    for layer in range(len(source.layers)):
        step = max(1, PIECE_BYTES // source.bytes_of(layer, 1))
        for start in range(0, len(pages), step):
            part = pages[start : start + step]
            link.send_piece(layer, first_page + start, len(part), source.read(layer, part))


class Arrivals:
    """Pages of one prompt that are being filled: `pages` are those from `first_page` on."""

    def __init__(self, target: PageBytes, pages: Sequence[int], *, first_page: int) -> None:
        self._target = target
        self._pages = tuple(pages)
        self._first_page = first_page
        self._num_layers = np.zeros(len(pages), np.int64)  # that arrived, by page
        self.num_bytes = 0

    @property
    def num_complete(self) -> int:
        """Pages from the first on of which every layer is here."""
        missing = np.flatnonzero(self._num_layers < len(self._target.layers))
        return int(missing[0]) if missing.size else len(self._pages)

    def take(self, piece: Piece, link: Link) -> None:
        """Read a piece into its pages. TransferError when it is corrupt or belongs nowhere."""
        start = piece.first_page - self._first_page
        is_known = 0 <= piece.layer < len(self._target.layers) and piece.num_pages > 0
        if not is_known or start < 0 or start + piece.num_pages > len(self._pages):
            raise TransferError(f"a piece that nobody asked for: {piece}")
        num_bytes = self._target.bytes_of(piece.layer, piece.num_pages)
        payload = link.read_payload(piece, num_bytes=num_bytes)
        self._target.write(piece.layer, self._pages[start : start + piece.num_pages], payload)
        link.release()
        self._num_layers[start : start + piece.num_pages] += 1
        self.num_bytes += num_bytes
