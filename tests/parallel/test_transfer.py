"""Pages over a link: by TCP and through shared memory, whole, corrupt and nonsensical."""

from __future__ import annotations

import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from phloem.parallel.transfer.link import End, Link, Offer, Piece, TransferError
from phloem.parallel.transfer.slab import FOLDER, Slab
from phloem.runtime.handover.pages import Arrivals, PageBytes, send_pages

NUM_LAYERS, NUM_PAGES, PAGE_BYTES = 3, 40, 1 << 18  # a layer is several pieces, and more of them than slots


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    """Who sends, who receives."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    sender, receiver = Link(connection), Link(accepted)
    yield sender, receiver
    sender.close()
    receiver.close()


def pool(seed: int) -> PageBytes:
    numbers = np.random.default_rng(seed)
    layers = [numbers.integers(0, 256, (NUM_PAGES, PAGE_BYTES), np.uint8) for _ in range(NUM_LAYERS)]
    return PageBytes(layers, page_size=32, fingerprint="")


def receive(receiver: Link, arrivals: Arrivals) -> None:
    while not isinstance(message := receiver.receive(), End):
        if isinstance(message, Offer):
            receiver.answer_offer(message)
        else:
            assert isinstance(message, Piece)
            arrivals.take(message, receiver)


@pytest.mark.parametrize("is_shared", [False, True], ids=["tcp", "shared memory"])
def test_pages_arrive_where_they_belong(ends: tuple[Link, Link], is_shared: bool) -> None:
    """Red if a slot is filled before it was emptied, or a page, layer or piece changes places."""
    before = set(FOLDER.glob("phloem-kv-*"))  # of others on this machine
    sender, receiver = ends
    source, target = pool(1), pool(2)
    pages = np.random.default_rng(3).permutation(NUM_PAGES).tolist()
    arrivals = Arrivals(target, pages, first_page=7)

    def send() -> None:
        if is_shared:
            sender.offer_slab(source.piece_bytes)
        send_pages(sender, source, range(NUM_PAGES), first_page=7)
        sender.finish()

    thread = threading.Thread(target=send)
    thread.start()
    receive(receiver, arrivals)
    receiver.close()
    thread.join(10)
    assert not thread.is_alive()
    assert arrivals.num_complete == NUM_PAGES
    for ours, theirs in zip(target.layers, source.layers, strict=True):
        assert (ours[pages] == theirs).all()
    assert not is_shared or receiver._slab is not None
    assert set(FOLDER.glob("phloem-kv-*")) <= before


def test_corrupt_bytes_are_not_used(ends: tuple[Link, Link]) -> None:
    """Red if a flipped bit passes: the checksum is of the bytes that were meant."""
    sender, receiver = ends
    payload = memoryview(bytearray(pool(1).read(0, [0])))
    piece = Piece(0, 0, 1, zlib.crc32(payload))
    payload[5] ^= 1
    threading.Thread(target=sender._send, args=(piece, payload)).start()
    arrivals = Arrivals(pool(2), [4], first_page=0)
    message = receiver.receive()
    assert isinstance(message, Piece)
    with pytest.raises(TransferError, match="corrupt"):
        arrivals.take(message, receiver)
    assert arrivals.num_complete == 0


@pytest.mark.parametrize("piece", [Piece(9, 0, 1, 0), Piece(-1, 0, 1, 0), Piece(0, 5, 1, 0), Piece(0, 0, 0, 0)])
def test_a_piece_nobody_asked_for_is_refused(ends: tuple[Link, Link], piece: Piece) -> None:
    """Red if a peer can write outside the pages that are reserved for it."""
    with pytest.raises(TransferError, match="nobody asked"):
        Arrivals(pool(2), [4], first_page=0).take(piece, ends[1])


@pytest.mark.parametrize("sent", [b"", b"\x03\x00\x00\x00\x00\x00\x00\x00abc", b"\xff" * 8])
def test_nonsense_is_a_transfer_error(sent: bytes) -> None:
    """Red if a peer that talks something else is anything but a transfer that failed."""
    left, right = socket.create_server(("127.0.0.1", 0)), None
    client = socket.create_connection(left.getsockname())
    right, _ = left.accept()
    client.sendall(sent)
    client.close()
    with pytest.raises(TransferError):
        Link(right).receive()
    right.close()
    left.close()


@pytest.mark.parametrize("name", ["../etc/passwd", "phloem-kv-0123456789abcdef", "x"])
def test_a_slab_is_only_what_a_replica_made(name: str) -> None:
    """Red if a peer can have another file mapped."""
    with pytest.raises(FileNotFoundError):
        Slab(name, slot_bytes=4096, is_new=False)
    assert not Path(FOLDER / "x").exists()
