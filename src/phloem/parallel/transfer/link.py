"""One connection between two replicas, and what they say over it.

    decode replica -- Fetch --> prefill replica        the prompt, and from which page on
    decode replica <-- Refused | Piece* Beat* End --   pages as they are computed, layer by layer, each piece checked

A frame is its lengths, a message (msgpack), and the bytes of pages if the message is a Piece. What carries those is
behind two functions, `send_piece` and `read_payload`: TCP here. A library that moves memory between devices (NIXL) would
take their place, and leave the messages as they are.
"""

from __future__ import annotations

import socket
import struct
import zlib

import msgspec

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


Message = Fetch | Refused | Piece | Beat | End
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Link:
    """One end. Every call raises TransferError when the peer is gone, silent for too long, or talks nonsense."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._payload_bytes = 0  # of the last message; to be read before the next one

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

    def send_piece(self, layer: int, first_page: int, num_pages: int, payload: memoryview) -> None:
        """The bytes of some pages of one layer."""
        self._send(Piece(layer, first_page, num_pages, zlib.crc32(payload)), payload)

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
        """The bytes of a piece, which must be `num_bytes`, and as they were sent."""
        if self._payload_bytes != num_bytes:
            raise TransferError(f"a piece of {self._payload_bytes} bytes where {num_bytes} belong")
        payload = self._read(num_bytes)
        if zlib.crc32(payload) != piece.checksum:
            raise TransferError(f"corrupt bytes in layer {piece.layer}, pages from {piece.first_page} on")
        return payload

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
