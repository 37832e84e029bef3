"""What the sandbox and its warden say to each other: frames of 4 bytes of length and as many of msgpack."""

from __future__ import annotations

import os

import msgspec

from phloem.core.request import Constraint
from phloem.runtime.grammar.vocabulary import Vocabulary

BYTES_PER_LENGTH = 4


class Start(msgspec.Struct, frozen=True):
    """What a warden works with. A trial may take `deadline_s`, and `max_bytes` of memory beyond the vocabulary's; for
    `credit_s`, slow ones may compete with others for the cores."""

    vocabulary: Vocabulary
    max_bytes: int
    deadline_s: float
    credit_s: float


class Trial(msgspec.Struct, frozen=True):
    """A constraint to be tried. `key` names it in the verdict."""

    key: bytes
    constraint: Constraint


class Verdict(msgspec.Struct, frozen=True):
    """Why a constraint cannot be served, or "" if it can. `is_overloaded`: there was no room to find out."""

    key: bytes
    reason: str = ""
    is_overloaded: bool = False


def read_frame(source: int) -> bytes:
    """The next frame from a file descriptor; empty at the end of the input."""
    return _read(source, int.from_bytes(_read(source, BYTES_PER_LENGTH), "big"))


def write_frame(sink: int, body: bytes) -> None:
    """A frame to a file descriptor; waits for the reader."""
    view = memoryview(len(body).to_bytes(BYTES_PER_LENGTH, "big") + body)
    while view:
        view = view[os.write(sink, view) :]


class FrameBuffer:
    """Bytes in as they come, whole frames out."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes."""
        self._data += data
        frames = []
        while len(self._data) >= BYTES_PER_LENGTH:
            end = BYTES_PER_LENGTH + int.from_bytes(self._data[:BYTES_PER_LENGTH], "big")
            if len(self._data) < end:
                break
            frames.append(bytes(self._data[BYTES_PER_LENGTH:end]))
            del self._data[:end]
        return frames


def _read(source: int, num_bytes: int) -> bytes:
    """So many bytes; none where the input ends before."""
    data = bytearray()
    while len(data) < num_bytes:
        piece = os.read(source, num_bytes - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)
