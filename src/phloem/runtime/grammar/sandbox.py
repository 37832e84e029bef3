"""The sandbox: a constraint is tried in a process that may be killed, before any engine hears of it.

    check(constraint) -> Future[reason or ""]     each thread of the sandbox owns one process (trial.py)

A trial has a deadline and a memory limit; a process that passes either is killed, and the next trial starts another.
Verdicts are remembered: what passed costs nothing, what failed or timed out is refused at once the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, cast

import msgspec

from phloem.core.errors import Overloaded, PhloemError, RequestFailed
from phloem.core.request import Constraint
from phloem.runtime.grammar.frames import BYTES_PER_LENGTH, Start, write_frame
from phloem.runtime.grammar.vocabulary import Vocabulary

DEADLINE_S = 4.0
"""MaskBench's slowest schema of 7,959 takes 2.5 s, 99 in 100 take 13 ms."""
NICE = 10
"""A trial waits for a core, a step of the engine does not."""
SLOW_CPU_S = 0.15
"""Ten times what 99 in 100 schemas take. A trial that has had more runs on only where nothing else would. With less at
its deadline, it is the machine that was slow, and not the constraint."""
LOOK_S = 0.05
START_S = 60.0
MAX_TRIAL_BYTES = 512 << 20
MAX_VERDICT_BYTES = 4 << 20
NUM_PROCESSES = 2
MAX_WAITING = 32


class Sandbox:
    """Verdicts about constraints for one model. Threads may share it. Processes start with the first constraint."""

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        *,
        deadline_s: float = DEADLINE_S,
        max_bytes: int = MAX_TRIAL_BYTES,
        num_processes: int = NUM_PROCESSES,
    ) -> None:
        self._vocabulary = vocabulary
        self._deadline_s = deadline_s
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="phloem-sandbox")
        self._lock = threading.Lock()
        self._verdicts = Verdicts(MAX_VERDICT_BYTES)
        self._under_way: dict[bytes, Future[str]] = {}
        self._processes: list[TrialProcess] = []
        self._idle: list[TrialProcess] = []
        self._start = b""  # what every process is told first: some megabytes, encoded once

    def check(self, constraint: Constraint) -> Future[str]:
        """Why it cannot be served, or "" if it can. Overloaded when too many wait for their trials."""
        key = _digest(constraint)
        with self._lock:
            if (verdict := self._verdicts.get(key)) is not None:
                known: Future[str] = Future()
                known.set_result(verdict)
                return known
            if key in self._under_way:
                return self._under_way[key]
            if len(self._under_way) >= MAX_WAITING:
                raise Overloaded("too many new constraints wait for their trials; try again", retry_after_s=2)
            future = self._under_way[key] = self._threads.submit(self._try, key, constraint)
            return future

    def close(self) -> None:
        """End the processes; trials under way end with them."""
        with self._lock:
            processes = list(self._processes)
        for process in processes:
            process.end()
        self._threads.shutdown(cancel_futures=True)
        for process in processes:
            process.kill()

    def _try(self, key: bytes, constraint: Constraint) -> str:
        try:
            process = self._take_process()
            try:
                verdict = process.judge(constraint, deadline_s=self._deadline_s)
            finally:
                self._put_back(process)
            with self._lock:
                self._verdicts.add(key, verdict)
            return verdict
        finally:
            with self._lock:
                del self._under_way[key]

    def _put_back(self, process: TrialProcess) -> None:
        with self._lock:
            if process.is_alive:
                self._idle.append(process)
            else:
                self._processes.remove(process)

    def _take_process(self) -> TrialProcess:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if not self._start:
                self._start = msgspec.msgpack.encode(Start(self._vocabulary(), self._max_bytes, self._deadline_s))
            process = TrialProcess()
            self._processes.append(process)
        try:
            process.start(self._start)
        except PhloemError:
            self._put_back(process)
            raise
        return process


class TrialProcess:
    """One trial process, seen from outside."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "phloem.runtime.grammar.trial"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)  # from its first instruction on
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = cast(BinaryIO, self._process.stdin), self._process.stdout
        self.is_alive = True
        self._is_demoted = False
        self._slow_at_cpu_s = math.inf  # reading the vocabulary is not held against it
        self._refusal = ""

    def start(self, start: bytes) -> None:
        """Tell it its (encoded) Start and wait until it has read the vocabulary. RequestFailed when it cannot."""
        self._refusal = self._ask(start, timeout_s=START_S)
        if not self.is_alive:
            raise RequestFailed("the process that tries constraints did not start")

    def judge(self, constraint: Constraint, *, deadline_s: float) -> str:
        """Why the constraint cannot be served, or ""; the process is killed when it does not say so in time.

        A trial that takes longer than nearly all goes on only while a core is idle; its process serves no others.
        """
        if self._refusal:
            return self._refusal
        self._slow_at_cpu_s = _cpu_s(self._process.pid) + min(SLOW_CPU_S, deadline_s / 2)
        verdict = self._ask(msgspec.msgpack.encode(constraint), timeout_s=deadline_s)
        if self._is_demoted and self.is_alive:
            self.kill()
        return verdict

    def end(self) -> None:
        """End it, whatever another thread is asking it."""
        self._process.kill()

    def kill(self) -> None:
        """End it, and give back what it took."""
        self.is_alive = False
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what it was still to read
            self._stdin.close()
        self._stdout.close()

    def _ask(self, frame: bytes, *, timeout_s: float) -> str:
        deadline_s, answer = time.monotonic() + timeout_s, self._stdout.fileno()
        try:
            write_frame(self._stdin, frame)
            while time.monotonic() < deadline_s and not _is_readable(answer, LOOK_S):
                self._demote_if_slow()
            return _read_frame(answer, deadline_s).decode()
        except TimeoutError:
            self.kill()
            if not self._is_demoted:
                raise Overloaded("the machine is too busy to try this constraint; send it again") from None
            return f"it takes longer than {timeout_s:g} s to compile: make it simpler"
        except (BrokenPipeError, EOFError):
            self.kill()
            return "the attempt to compile it broke down, or took more memory than it may: make it simpler"

    def _demote_if_slow(self) -> None:
        if not self._is_demoted and _cpu_s(self._process.pid) > self._slow_at_cpu_s:
            os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))
            self._is_demoted = True


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


def _cpu_s(pid: int) -> float:
    """Seconds of a core that a process has had."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read_frame(source: int, deadline_s: float) -> bytes:
    """The next frame; TimeoutError when it is not there by `deadline_s` (monotonic), EOFError at the end."""
    length = _read_exactly(source, BYTES_PER_LENGTH, deadline_s)
    return _read_exactly(source, int.from_bytes(length, "big"), deadline_s)


def _read_exactly(source: int, num_bytes: int, deadline_s: float) -> bytes:
    data = b""
    while len(data) < num_bytes:
        if not _is_readable(source, deadline_s - time.monotonic()):
            raise TimeoutError
        piece = os.read(source, num_bytes - len(data))  # not the buffered stream: `poll` cannot see its buffer
        if not piece:
            raise EOFError
        data += piece
    return data


def _is_readable(source: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(source, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout_s) * 1000))
