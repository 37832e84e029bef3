"""The sandbox: a constraint is tried in a process that may be killed, before any engine hears of it.

    check(constraint) -> Future[reason or ""]        warden.py forks the workers that try, watches and ends them

Verdicts are remembered: what passed costs nothing, what failed or timed out is refused at once the next time. Nobody
waits without a chance: with MAX_WAITING under way, or too many slow ones, the answer is Overloaded at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from phloem.core.errors import Overloaded, PhloemError, RequestFailed
from phloem.core.request import Constraint
from phloem.runtime.grammar.frames import Start, Trial, Verdict, read_frame, write_frame
from phloem.runtime.grammar.vocabulary import Vocabulary

DEADLINE_S = 4.0
"""MaskBench's slowest schema of 7,959 takes 2.5 s, 99 in 100 take 13 ms."""
NICE = 10
"""A trial waits for a core, a step of the engine does not."""
CREDIT_S = 1.0
"""For so long in all slow trials may run beside steps of a busy engine; it comes back at warden.CREDIT_RATE."""
MAX_TRIAL_BYTES = 512 << 20
MAX_VERDICT_BYTES = 4 << 20
MAX_WAITING = 32
RETRY_AFTER_S = 4
END_S = 1.0


class Sandbox:
    """Verdicts about constraints for one model. Threads may share it. Its process starts with the first constraint, or
    with `start`."""

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        *,
        deadline_s: float = DEADLINE_S,
        max_bytes: int = MAX_TRIAL_BYTES,
        credit_s: float = CREDIT_S,
    ) -> None:
        self._vocabulary = vocabulary
        self._deadline_s = deadline_s
        self._credit_s = credit_s
        self._max_bytes = max_bytes
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="phloem-sandbox")
        self._lock = threading.Lock()
        self._verdicts = Verdicts(MAX_VERDICT_BYTES)
        self._under_way: dict[bytes, Future[str]] = {}
        self._warden: WardenProcess | None = None  # the writer's own
        self._is_closed = False

    def start(self) -> None:
        """Start the process now, so that the first constraint does not wait for it."""
        self._writer.submit(self._live_warden)

    def check(self, constraint: Constraint) -> Future[str]:
        """Why it cannot be served, or "" if it can. Overloaded, here or from the future, when there is no room to find
        out; RequestFailed from the future when the process that tries it has ended."""
        key = _digest(constraint)
        with self._lock:
            if (verdict := self._verdicts.get(key)) is not None:
                known: Future[str] = Future()
                known.set_result(verdict)
                return known
            if key in self._under_way:
                return self._under_way[key]
            if len(self._under_way) >= MAX_WAITING:
                raise _overloaded()
            future = self._under_way[key] = Future()
            future.set_running_or_notify_cancel()  # nobody cancels it: others may wait for the same verdict
            self._writer.submit(self._send, Trial(key, constraint))
            return future

    def close(self) -> None:
        """End the process; trials under way end with it. Closing twice is harmless."""
        self._is_closed = True
        if (warden := self._warden) is not None:
            warden.end()  # whatever the writer is telling it
        self._writer.shutdown(cancel_futures=True)
        if self._warden is not None:
            self._warden.close()
        self._fail_all()

    def _send(self, trial: Trial) -> None:
        try:
            self._live_warden().send(trial)
        except (OSError, PhloemError):
            self._fail_all()

    def _live_warden(self) -> WardenProcess:
        if self._warden is None or not self._warden.is_alive:
            if self._warden is not None:
                self._warden.close()
            start = Start(self._vocabulary(), self._max_bytes, self._deadline_s, self._credit_s)
            self._warden = WardenProcess(start, on_verdict=self._settle, on_end=self._fail_all)
            if self._is_closed:
                self._warden.end()
        return self._warden

    def _settle(self, verdict: Verdict) -> None:
        with self._lock:
            future = self._under_way.pop(verdict.key, None)
            if not verdict.is_overloaded:
                self._verdicts.add(verdict.key, verdict.reason)
        if future is None:
            return
        if verdict.is_overloaded:
            future.set_exception(_overloaded())
        else:
            future.set_result(verdict.reason)

    def _fail_all(self) -> None:
        with self._lock:
            futures, self._under_way = list(self._under_way.values()), {}
        error: PhloemError = RequestFailed("the process that tries constraints ended; send the request again")
        if self._is_closed:
            error = Overloaded("the server is shutting down; send the request again")
        for future in futures:
            future.set_exception(error)


class WardenProcess:
    """The warden, seen from outside. `on_verdict` and `on_end` are called from a thread of its own."""

    def __init__(self, start: Start, *, on_verdict: Callable[[Verdict], None], on_end: Callable[[], None]) -> None:
        command = [sys.executable, "-m", "phloem.runtime.grammar.warden"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)  # from its first instruction on
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._sink, self._source = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._on_verdict, self._on_end = on_verdict, on_end
        self.is_alive = True
        self._reader = threading.Thread(target=self._read, name="phloem-sandbox-reader", daemon=True)
        self._reader.start()
        with contextlib.suppress(OSError):  # it has ended: the reader sees that, too
            write_frame(self._sink, msgspec.msgpack.encode(start))

    def send(self, trial: Trial) -> None:
        """Hand it a trial. OSError when it has ended."""
        write_frame(self._sink, msgspec.msgpack.encode(trial))

    def end(self) -> None:
        """Let it end its workers and itself. Harmless if it has ended."""
        self._process.terminate()

    def close(self) -> None:
        """End it and give back what it took. Nobody may be telling it anything."""
        self._process.terminate()
        self._reader.join(END_S)
        self._process.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        while frame := read_frame(self._source):
            self._on_verdict(msgspec.msgpack.decode(frame, type=Verdict))
        self._process.kill()
        self._process.wait()
        self._on_end()
        self.is_alive = False  # from here on the next one takes over


class Verdicts:
    """What was found about constraints, least recently used out first, bounded by bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._known: OrderedDict[bytes, str] = OrderedDict()

    def get(self, key: bytes) -> str | None:
        """The verdict, if it is known."""
        if key in self._known:
            self._known.move_to_end(key)
        return self._known.get(key)

    def add(self, key: bytes, verdict: str) -> None:
        """Remember one."""
        if key in self._known:
            return
        self._known[key] = verdict
        self._num_bytes += _verdict_bytes(key, verdict)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= _verdict_bytes(*self._known.popitem(last=False))


def _verdict_bytes(key: bytes, verdict: str) -> int:
    return len(key) + len(verdict) + 200  # two objects and an entry of the dictionary


def _digest(constraint: Constraint) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode(constraint)).digest()


def _overloaded() -> Overloaded:
    message = "too many new constraints are being tried, or too many slow ones; send the request again"
    return Overloaded(message, retry_after_s=RETRY_AFTER_S)
