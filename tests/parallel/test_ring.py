"""The ring: bytes in order to every reader, whatever their lengths and speeds; a reader that stops is noticed."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from phloem.parallel.ring import FRAME_BYTES, FRAMES, Ring, RingFull


@pytest.mark.parametrize("num_readers", [1, 3])
def test_every_reader_gets_every_message_in_order(tmp_path: Path, num_readers: int) -> None:
    """Red if frames are lost, joined wrongly or overwritten before the slowest reader took them."""
    random.seed(1)
    lengths = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES]
    messages = [random.randbytes(random.choice(lengths)) for _ in range(2 * FRAMES)]
    writer = Ring(tmp_path / "ring", num_readers=num_readers)
    seen: dict[int, list[bytes | None]] = {}

    def read(reader: int) -> None:
        ring = Ring(tmp_path / "ring", num_readers=num_readers, reader=reader)
        seen[reader] = []
        for _ in messages:
            time.sleep(0.0005 * reader)  # each at its own speed
            seen[reader].append(ring.receive(timeout_s=10))

    readers = [threading.Thread(target=read, args=(index,)) for index in range(num_readers)]
    for thread in readers:
        thread.start()
    for message in messages:
        writer.send(message, timeout_s=10)
    for thread in readers:
        thread.join()
    assert all(seen[index] == messages for index in range(num_readers))


def test_a_reader_that_stopped_fills_the_ring(tmp_path: Path) -> None:
    """Red if the writer waits for ever, or writes over what was not read."""
    writer = Ring(tmp_path / "ring", num_readers=2)
    reader = Ring(tmp_path / "ring", num_readers=2, reader=0)
    for index in range(FRAMES):
        writer.send(bytes([index]), timeout_s=1)
        assert reader.receive(timeout_s=1) == bytes([index])
    with pytest.raises(RingFull):
        writer.send(b"x", timeout_s=0.05)


def test_nothing_comes(tmp_path: Path) -> None:
    """Red if an empty ring blocks beyond its time-out."""
    Ring(tmp_path / "ring", num_readers=1)
    reader = Ring(tmp_path / "ring", num_readers=1, reader=0)
    began_s = time.monotonic()
    assert reader.receive(timeout_s=0.05) is None
    assert time.monotonic() - began_s < 1
