"""One writer, many readers, bytes in order over shared memory: how plans reach the ranks of one machine.

    header   written: u64 | read[0]: u64 | read[1]: u64 ...      frames so far; each word has one writer
    frames   FRAMES x { length u32, is_last u8, payload FRAME_BYTES }

A message is one or more frames. The writer waits for the slowest reader when the ring is full; a reader that sees
nothing spins for a moment and then sleeps, longer the longer nothing comes. The words are 8 bytes, aligned, and written
after the frame they announce: enough where stores are seen in order (x86-64); elsewhere `mailroom` takes ZeroMQ.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

FRAMES, FRAME_BYTES = 64, 1 << 16
_FRAME_HEAD = struct.Struct("<IB3x")
_WORD = struct.Struct("<Q")
_STRIDE = _FRAME_HEAD.size + FRAME_BYTES
SPINS, FIRST_NAP_S, LONGEST_NAP_S = 200, 20e-6, 1e-3


class RingFull(Exception):
    """A reader has not taken anything for as long as the writer would wait."""


class Ring:
    """The mapped file, seen by its writer (`reader` None) or by one of its readers."""

    def __init__(self, path: Path, *, num_readers: int, reader: int | None = None) -> None:
        self._num_readers = num_readers
        self._reader = reader
        self._frames_at = _WORD.size * (1 + num_readers)
        size = self._frames_at + FRAMES * _STRIDE
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if reader is None else 0), 0o600)
        try:
            if reader is None:
                os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._count = 0  # frames written, or read

    def send(self, message: bytes, *, timeout_s: float) -> None:
        """Write one message; RingFull when some reader leaves no room for that long."""
        for start in range(0, max(1, len(message)), FRAME_BYTES):
            part = message[start : start + FRAME_BYTES]
            self._await_room(timeout_s)
            at = self._frames_at + self._count % FRAMES * _STRIDE
            self._memory[at + _FRAME_HEAD.size : at + _FRAME_HEAD.size + len(part)] = part
            _FRAME_HEAD.pack_into(self._memory, at, len(part), start + FRAME_BYTES >= len(message))
            self._count += 1
            _WORD.pack_into(self._memory, 0, self._count)

    def receive(self, *, timeout_s: float) -> bytes | None:
        """The next message; None when none begins to arrive within `timeout_s`."""
        assert self._reader is not None
        parts: list[bytes] = []
        while True:
            if not self._await_frame(timeout_s):
                return None
            at = self._frames_at + self._count % FRAMES * _STRIDE
            length, is_last = _FRAME_HEAD.unpack_from(self._memory, at)
            parts.append(self._memory[at + _FRAME_HEAD.size : at + _FRAME_HEAD.size + length])
            self._count += 1
            _WORD.pack_into(self._memory, _WORD.size * (1 + self._reader), self._count)
            if is_last:
                return b"".join(parts)

    def close(self) -> None:
        """Unmap; the file is its maker's to remove."""
        self._memory.close()

    def _await_room(self, timeout_s: float) -> None:
        words = range(_WORD.size, self._frames_at, _WORD.size)

        def has_room() -> bool:
            return all(self._count - _WORD.unpack_from(self._memory, at)[0] < FRAMES for at in words)

        if not _poll(has_room, timeout_s):
            raise RingFull(f"a rank has read nothing for {timeout_s:g} s")

    def _await_frame(self, timeout_s: float) -> bool:
        return _poll(lambda: _WORD.unpack_from(self._memory, 0)[0] > self._count, timeout_s)


def _poll(is_so: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until `is_so()`, at most `timeout_s`."""
    for _ in range(SPINS):
        if is_so():
            return True
    deadline_s, nap_s = time.monotonic() + timeout_s, FIRST_NAP_S
    while time.monotonic() < deadline_s:
        if is_so():
            return True
        time.sleep(nap_s)
        nap_s = min(1.2 * nap_s, LONGEST_NAP_S)
    return is_so()
