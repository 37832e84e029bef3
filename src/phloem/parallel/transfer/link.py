"""One connection between two replicas, and what they say over it.

    decode replica -- Fetch --> prefill replica        the prompt, and from which page on
    decode replica <-- Offer -- | -- Answer -->        whether both see the same memory: then bytes go through a slab
    decode replica <-- Refused | Piece* Beat* End --   pages as they are computed, layer by layer, each piece checked
    decode replica -- Taken -->                        a slot of the slab is free again

A frame is its lengths, a message (msgpack), and the bytes of pages if the message is a Piece and there is no slab. What
carries bytes is behind `send_piece`, `read_payload` and `release`. A library that moves memory between devices (NIXL)
would stand there as a third way beside TCP and the slab, offered and answered like that one; messages stay.
"""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import msgspec

from phloem.parallel.transfer.slab import NUM_SLOTS, Slab

BEAT_S, SILENCE_S = 0.5, 3.0
"""Who computes says so; a peer that is silent for that long is given up."""
CONNECT_S = 2.0
MAX_MESSAGE_BYTES = 64 << 20
_FRAME = struct.Struct("<II")  # bytes of the message, bytes of the payload


class TransferError(Exception):
    """The transfer cannot go on. What it brought until then is good; the rest is computed again."""


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag="fetch"):
    """Compute `tokens`, whole pages of a prompt, and send their pages from `first_page` on. `fingerprint` covers the
    model, its weights and the layout of a page: both sides must have the same."""

    fingerprint: str
    tokens: tuple[int, ...]
    first_page: int
    namespace: str = ""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Nothing will come, and why."""

    message: str


class Offer(msgspec.Struct, frozen=True, array_like=True, tag="offer"):
    """A slab of this name and slots of this size, for who can map it."""

    name: str
    slot_bytes: int


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """Whether it is mapped."""

    is_mapped: bool


class Taken(msgspec.Struct, frozen=True, array_like=True, tag="taken"):
    """One more slot is free."""


class Piece(msgspec.Struct, frozen=True, array_like=True, tag="piece"):
    """One layer of `num_pages` pages of the prompt, from `first_page` on; `checksum` is the CRC-32 of the payload."""

    layer: int
    first_page: int
    num_pages: int
    checksum: int


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """Still computing."""


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """All that there is was sent."""


Message = Fetch | Refused | Offer | Answer | Taken | Piece | Beat | End
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[memoryview], Message] = msgspec.msgpack.Decoder(Message).decode


class Link:
    """One end. Every call raises TransferError when the peer is gone, silent for too long, or talks nonsense."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._payload_bytes = 0  # of the last message; to be read before the next one
        self._slab: Slab | None = None
        self._num_pieces = self._num_taken = 0

    @classmethod
    def to(cls, address: str) -> Link:
        """Connect to host:port."""
        try:
            return cls(socket.create_connection(split_address(address), timeout=CONNECT_S))
        except OSError as error:
            raise TransferError(f"{address} cannot be reached: {error}") from error

    def send(self, message: Message) -> None:
        """One message."""
        self._send(message, memoryview(b""))

    def offer_slab(self, slot_bytes: int) -> None:
        """Ask whether the peer is on this machine; if so, pieces of up to `slot_bytes` need no copy to a socket."""
        try:
            slab = Slab.make(slot_bytes)
        except OSError:  # no such folder here
            return
        try:
            self.send(Offer(slab.name, slot_bytes))
            answer = self.receive()
        finally:
            slab.forget_name()
        if isinstance(answer, Answer) and answer.is_mapped:
            self._slab = slab

    def answer_offer(self, offer: Offer) -> None:
        """Map the slab if it is here."""
        try:
            self._slab = Slab(offer.name, slot_bytes=offer.slot_bytes, is_new=False)
        except OSError:
            self.send(Answer(False))
            return
        self.send(Answer(True))

    def send_piece(self, layer: int, first_page: int, num_pages: int, payload: memoryview) -> None:
        """The bytes of some pages of one layer."""
        piece = Piece(layer, first_page, num_pages, zlib.crc32(payload))
        if self._slab is None:
            self._send(piece, payload)
            return
        while self._num_pieces - self._num_taken >= NUM_SLOTS:
            if not isinstance(self.receive(), Taken):
                raise TransferError("something else where a slot was to be given back")
            self._num_taken += 1
        self._slab.slot(self._num_pieces, len(payload))[:] = payload
        self._num_pieces += 1
        self.send(piece)

    def receive(self) -> Message:
        """The next message; after a Piece, `read_payload` is the next call."""
        head, self._payload_bytes = _FRAME.unpack(self._read(_FRAME.size))
        if head > MAX_MESSAGE_BYTES:
            raise TransferError(f"a message of {head} bytes")
        try:
            message = _decode(self._read(head))
        except msgspec.DecodeError as error:
            raise TransferError(f"an unreadable message: {error}") from error
        if self._payload_bytes and not isinstance(message, Piece):
            raise TransferError("bytes of pages that nothing announces")
        return message

    def read_payload(self, piece: Piece, *, num_bytes: int) -> memoryview:
        """The bytes of a piece, which must be `num_bytes`, and as they were sent; good until `release`."""
        if self._slab is not None and num_bytes <= self._slab.slot_bytes:
            payload = self._slab.slot(self._num_pieces, num_bytes)
            self._num_pieces += 1
        elif self._payload_bytes == num_bytes:
            payload = self._read(num_bytes)
        else:
            raise TransferError(f"a piece of {self._payload_bytes} bytes where {num_bytes} belong")
        if zlib.crc32(payload) != piece.checksum:
            raise TransferError(f"corrupt bytes in layer {piece.layer}, pages from {piece.first_page} on")
        return payload

    def release(self) -> None:
        """What `read_payload` gave is done with."""
        if self._slab is not None:
            self.send(Taken())

    def finish(self) -> None:
        """Send End and wait until the peer has closed: closing with its words unread would take back our last ones."""
        self.send(End())
        with suppress(OSError):
            while self._socket.recv(1 << 12):
                pass

    def close(self) -> None:
        """Let go of it. Closing twice is harmless."""
        self._socket.close()

    def _send(self, message: Message, payload: memoryview) -> None:
        encoded = _encode(message)
        try:
            self._socket.sendall(_FRAME.pack(len(encoded), len(payload)) + encoded)
            if payload:
                self._socket.sendall(payload)
        except OSError as error:
            raise TransferError(f"the other replica is gone: {error}") from error

    def _read(self, num_bytes: int) -> memoryview:
        view = memoryview(bytearray(num_bytes))
        num_read = 0
        while num_read < num_bytes:
            try:
                count = self._socket.recv_into(view[num_read:])
            except TimeoutError as error:
                raise TransferError(f"the other replica has been silent for {SILENCE_S:g} s") from error
            except OSError as error:
                raise TransferError(f"the other replica is gone: {error}") from error
            if not count:
                raise TransferError("the other replica closed the connection")
            num_read += count
        return view


def split_address(address: str) -> tuple[str, int]:
    """host:port as its parts."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
