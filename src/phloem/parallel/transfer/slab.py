"""Shared memory between two replicas of one machine: some slots that one side fills and the other empties, in turns.

The filler makes a file in /dev/shm; when the other has mapped it, its name is removed: nothing is left behind however
either ends. Who may fill which slot is said over the link (`Taken`).
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")
NUM_SLOTS = 4
_NAME = re.compile(r"phloem-kv-[0-9a-f]{16}")


class Slab:
    """`NUM_SLOTS` slots of `slot_bytes` bytes."""

    def __init__(self, name: str, *, slot_bytes: int, is_new: bool) -> None:
        """OSError where there is no such memory: another machine, or another user's."""
        if not _NAME.fullmatch(name):
            raise FileNotFoundError(name)
        self._path = FOLDER / name
        self.name, self.slot_bytes = name, slot_bytes
        descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o600)
        try:
            if is_new:
                os.ftruncate(descriptor, NUM_SLOTS * slot_bytes)
            elif os.fstat(descriptor).st_size != NUM_SLOTS * slot_bytes:
                raise FileNotFoundError(name)
            self._memory = memoryview(mmap.mmap(descriptor, NUM_SLOTS * slot_bytes))
        finally:
            os.close(descriptor)

    @classmethod
    def make(cls, slot_bytes: int) -> Slab:
        """A new one, under a name nobody can guess."""
        return cls(f"phloem-kv-{secrets.token_hex(8)}", slot_bytes=slot_bytes, is_new=True)

    def slot(self, turn: int, num_bytes: int) -> memoryview:
        """The first bytes of the slot whose turn it is."""
        start = turn % NUM_SLOTS * self.slot_bytes
        return self._memory[start : start + num_bytes]

    def forget_name(self) -> None:
        """Nobody else may find it; who has it mapped keeps it."""
        with suppress(FileNotFoundError):
            self._path.unlink()
