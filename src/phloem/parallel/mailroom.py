"""What the deciding process and the ranks of its replica say to each other, and over what.

    decider --- RankStep, Quit ---> every rank     shared memory (ring.py) on one machine, ZeroMQ between machines
    decider <-- Joined, Beat, Observed, Gone ---   ZeroMQ

A rank beats from a thread of its own, so that silence means that the process is stopped, dead or cut off, not that a
step is long.
"""

from __future__ import annotations

import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
import zmq

from phloem.core.errors import ConfigError, EngineDead
from phloem.core.plan import StepPlan
from phloem.core.result import StepResult
from phloem.parallel.ring import Ring, RingFull

BEAT_S, SILENCE_S = 0.5, 3.0
"""A rank that was silent for that long is lost: noticed well within 5 s."""
CUT_POLL_MS = 100


class RankStep(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """Apply `plan`. `learned` holds (row, tokens) that other ranks sampled and this plan may build on: the ranks that
    sample themselves, those of the last stage, need none of it."""

    plan: StepPlan
    learned: tuple[tuple[int, tuple[int, ...]], ...] = ()


class Quit(msgspec.Struct, frozen=True, array_like=True, tag="quit"):
    """Close the worker and exit."""


class Arrived(msgspec.Struct, frozen=True, array_like=True, tag="arrived"):
    """The rank runs, and will now meet the others."""

    rank: int


class Joined(msgspec.Struct, frozen=True, array_like=True, tag="joined"):
    """The rank is ready. `fingerprint` covers versions, options and weights: all ranks must have the same."""

    rank: int
    fingerprint: str


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """The rank lives."""

    rank: int


class Observed(msgspec.Struct, frozen=True, array_like=True, tag="observed"):
    """What the last stage sampled."""

    result: StepResult


class Gone(msgspec.Struct, frozen=True, array_like=True, tag="gone"):
    """The rank ends; `code` and `field` as of the error it met."""

    rank: int
    code: str
    message: str
    field: str | None = None


ToRank = RankStep | Quit
Message = TypeVar("Message")
FromOne = TypeVar("FromOne", Arrived, Joined)
FromRank = Arrived | Joined | Beat | Observed | Gone

_encode = msgspec.msgpack.Encoder().encode
_decode_to_rank = msgspec.msgpack.Decoder(ToRank).decode
_decode_from_rank = msgspec.msgpack.Decoder(FromRank).decode


class RankPost:
    """A rank's end of both channels. Between machines, `on_cut` is called, once and on a thread of its own, when the
    decider ended, was stopped or is cut off; on one machine standard input tells."""

    def __init__(
        self, *, plans: str, results: str, rank: int, num_ranks: int, on_cut: Callable[[], None] = lambda: None
    ) -> None:
        self._rank = rank
        self._is_closing = False
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._results = self._context.socket(zmq.PUSH)
        self._results.connect(results)
        self._ring: Ring | None = None
        self._plans: zmq.Socket[bytes] | None = None
        self._watcher: threading.Thread | None = None
        if urlsplit(plans).scheme == "file":
            self._ring = Ring(Path(urlsplit(plans).path), num_readers=num_ranks - 1, reader=rank - 1)
        else:
            self._plans = self._context.socket(zmq.DEALER)
            self._plans.setsockopt(zmq.HEARTBEAT_IVL, round(1000 * BEAT_S))
            self._plans.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(1000 * SILENCE_S))
            cuts = self._plans.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._watcher = threading.Thread(target=self._watch, args=(cuts, on_cut), daemon=True)
            self._watcher.start()
            self._plans.setsockopt(zmq.IDENTITY, _identity(rank))
            self._plans.connect(plans)
            self._plans.send(b"")

    def receive(self, *, timeout_s: float) -> ToRank | None:
        """The next order; None when none comes in time."""
        if self._ring is not None:
            message = self._ring.receive(timeout_s=timeout_s)
        else:
            assert self._plans is not None
            message = self._plans.recv() if self._plans.poll(round(timeout_s * 1000)) else None
        return None if message is None else _decode_to_rank(message)

    def send(self, message: FromRank) -> None:
        """Say something to the decider. One thread at a time."""
        self._results.send(_encode(message))

    def close(self) -> None:
        """Let go of what was said, at most a second."""
        self._is_closing = True
        self._results.close(linger=1000)
        if self._plans is not None:
            self._plans.close(linger=0)
        if self._watcher is not None:
            self._watcher.join()
        self._context.term()
        if self._ring is not None:
            self._ring.close()

    def _watch(self, cuts: zmq.SyncSocket, on_cut: Callable[[], None]) -> None:
        while not self._is_closing:
            if cuts.poll(CUT_POLL_MS):
                if not self._is_closing:
                    on_cut()
                break
        cuts.close(linger=0)


class DeciderPost:
    """The decider's end. `plans` is file:///path (shared memory) or tcp://host:port; ranks 1 .. num_ranks - 1 read.

    A thread of its own listens to the ranks, so that a lost one is noticed while the engine idles, too: then `lost`
    says which and why, and `on_lost` is called, once, on that thread.
    """

    def __init__(self, *, plans: str, results: str, num_ranks: int, on_lost: Callable[[str], None]) -> None:
        self.lost: str | None = None
        self._num_ranks = num_ranks
        self._on_lost = on_lost
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._ring: Ring | None = None
        self._plans: zmq.Socket[bytes] | None = None
        if urlsplit(plans).scheme == "file":
            self._ring = Ring(Path(urlsplit(plans).path), num_readers=num_ranks - 1)
        else:
            self._plans = self._context.socket(zmq.ROUTER)
            self._plans.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._plans.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a rank that was started again has its old name
            self._plans.bind(plans)
        self._arrived: Queue[Arrived] = Queue()
        self._has_arrived: set[int] = set()
        self._joined: Queue[Joined] = Queue()
        self._results: Queue[StepResult] = Queue()
        self._lock = threading.Lock()
        self._is_closing = False
        self._listener = threading.Thread(target=self._listen, args=(results,), name="phloem-ranks", daemon=True)
        self._listener.start()

    def await_arrivals(self, *, timeout_s: float) -> None:
        """Until every rank runs. EngineDead when one ends or none comes."""
        for _ in self._each(self._arrived, timeout_s):
            pass

    def await_ranks(self, fingerprint: str, *, timeout_s: float) -> None:
        """Until every rank is ready. ConfigError when one is of another version, model or weights; EngineDead as
        before."""
        for joined in self._each(self._joined, timeout_s):
            if joined.fingerprint != fingerprint:
                raise ConfigError(
                    f"rank {joined.rank} runs another version, model or set of weights than rank 0; "
                    "install the same phloem and torch everywhere and give every rank the same files",
                    field="model",
                )

    def send(self, message: ToRank, *, timeout_s: float) -> None:
        """To every rank, in order. RingFull when one does not take it in time."""
        encoded = _encode(message)
        if self._ring is not None:
            self._ring.send(encoded, timeout_s=timeout_s)
            return
        assert self._plans is not None
        deadline_s = time.monotonic() + timeout_s
        for rank in range(1, self._num_ranks):
            while not self._reaches(self._plans, rank, encoded):
                if time.monotonic() > deadline_s:
                    raise RingFull(f"rank {rank} cannot be reached")
                time.sleep(1e-3)

    def next_result(self, *, timeout_s: float) -> StepResult | None:
        """The next result of the last stage; None when none comes in time or a rank is lost meanwhile."""
        return self._take(self._results, time.monotonic() + timeout_s)

    def close(self) -> None:
        """Close everything; what was not read is lost."""
        self._is_closing = True
        self._listener.join()
        if self._plans is not None:
            self._plans.close(linger=1000)
        self._context.term()
        if self._ring is not None:
            self._ring.close()

    def lose(self, why: str) -> None:
        """A rank is gone: wake who waits, and say so once."""
        with self._lock:
            if self.lost is not None or self._is_closing:
                return
            self.lost = why
        self._on_lost(why)

    def _each(self, queue: Queue[FromOne], timeout_s: float) -> Iterator[FromOne]:
        """One message of every rank."""
        deadline_s = time.monotonic() + timeout_s
        missing = set(range(1, self._num_ranks))
        while missing:
            message = self._take(queue, deadline_s)
            if message is None:
                raise EngineDead(self.lost or f"ranks {sorted(missing)} did not start within {timeout_s:g} s")
            yield message
            missing.discard(message.rank)

    def _reaches(self, plans: zmq.Socket[bytes], rank: int, message: bytes) -> bool:
        try:
            plans.send_multipart([_identity(rank), message], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def _take(self, queue: Queue[Message], deadline_s: float) -> Message | None:
        while self.lost is None and (left_s := deadline_s - time.monotonic()) > 0:
            try:
                return queue.get(timeout=min(left_s, BEAT_S))
            except Empty:
                continue
        return None

    def _listen(self, results: str) -> None:
        socket = self._context.socket(zmq.PULL)
        socket.bind(results)
        heard_s: dict[int, float] = {}  # from the first word on: until then a rank is starting
        while not self._is_closing:
            if socket.poll(round(1000 * BEAT_S / 2)):
                self._hear(_decode_from_rank(socket.recv()), heard_s)
            silent = [rank for rank, last_s in heard_s.items() if time.monotonic() - last_s > SILENCE_S]
            if silent:
                self.lose(f"rank {silent[0]} has been silent for {SILENCE_S:g} s: it was stopped, killed or cut off")
        socket.close(linger=0)

    def _hear(self, message: FromRank, heard_s: dict[int, float]) -> None:
        match message:
            case Observed(result):
                self._results.put(result)
            case Gone(rank, _, why):
                self.lose(f"rank {rank} ended: {why}")
            case Arrived(rank) if rank in self._has_arrived:  # its node did not wait for us to notice
                self.lose(f"rank {rank} died, and was started again where it runs")
            case Arrived(rank):
                self._has_arrived.add(rank)
                heard_s[rank] = time.monotonic()
                self._arrived.put(message)
            case Joined(rank):
                heard_s[rank] = time.monotonic()
                self._joined.put(message)
            case Beat(rank):
                heard_s[rank] = time.monotonic()


def _identity(rank: int) -> bytes:
    return rank.to_bytes(4, "little")


def shared_memory_works() -> bool:
    """Whether ring.py may be used: Linux on a processor that shows stores in order."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
