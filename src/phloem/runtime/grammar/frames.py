"""What a sandbox and its trial processes say to each other: frames of 4 bytes of length and as many of msgpack."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from phloem.runtime.grammar.vocabulary import Vocabulary

BYTES_PER_LENGTH = 4


class Start(msgspec.Struct, frozen=True):
    """What a trial process works with. `max_bytes` of memory beyond what it has once the vocabulary is read."""

    vocabulary: Vocabulary
    max_bytes: int
    deadline_s: float


def write_frame(sink: BinaryIO, frame: bytes) -> None:
    """One frame, at once."""
    sink.write(len(frame).to_bytes(BYTES_PER_LENGTH, "big") + frame)
    sink.flush()


def read_frame(source: BinaryIO) -> bytes:
    """The next frame; empty at the end of the input."""
    return source.read(int.from_bytes(source.read(BYTES_PER_LENGTH), "big"))
