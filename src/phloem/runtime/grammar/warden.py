"""The warden: the process that tries constraints, in workers that it forks, watches and ends.

    Trial --> queue --> quick worker     one trial at a time; nearly all are done within milliseconds
                          | has had QUICK_CPU_S
                          v
                        slow workers     NUM_SLOW at most, and only while a core would idle
    Verdict <--

So a slow constraint never stands before a quick one. Even a process that runs only where a core would idle slows its
neighbours down (caches, memory, a core's other half), so while slow workers have to wait for others (the kernel counts
how long) they live on credit, some of which comes back every second. Where there is no credit or no place, the
verdict is `is_overloaded`. On an idle machine nobody waits, and a constraint may take its whole deadline.

A worker keeps the vocabulary that the warden has read; forking one takes milliseconds, starting one from nothing half a
second.

`python -m phloem.runtime.grammar.warden`, started by sandbox.py: frames.py says what it reads and writes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import sys
import time
from collections import deque
from typing import NamedTuple

import msgspec

from phloem.runtime.grammar.compile import Compiler
from phloem.runtime.grammar.frames import FrameBuffer, Start, Trial, Verdict, read_frame, write_frame
from phloem.runtime.grammar.trial import num_bytes_of, serve_trials

QUICK_CPU_S = 0.03
"""Twice what 99 in 100 of MaskBench's schemas take."""
NUM_SLOW = 2
CREDIT_RATE = 0.01
MAX_WAITING_SHARE = 0.1
"""A worker that waits for a core for more of its time than this competes with somebody."""
LOOK_S = 0.02
READ_BYTES = 1 << 20
BROKE_DOWN = "the attempt to compile it broke down, or took more memory than it may: make it simpler"


class Warden:
    """Owns the queue of trials and the workers."""

    def __init__(
        self,
        compiler: Compiler,
        *,
        max_bytes: int,
        deadline_s: float,
        credit_s: float,
        source: int,
        sink: int,
    ) -> None:
        self._compiler = compiler
        self._max_bytes, self._deadline_s, self._max_credit_s = max_bytes, deadline_s, credit_s
        self._source, self._sink = source, sink
        self._frames = FrameBuffer()
        self._queue: deque[tuple[Trial, float]] = deque()  # with the time of arrival
        self._quick = self._fork()
        self._slow: list[Worker] = []
        self._ending: list[Worker] = []
        self._credit_s, self._seen_s = credit_s, time.monotonic()

    def run(self) -> None:
        """Until the input ends, or SIGTERM; then all workers end."""
        try:
            while self._turn():
                pass
        finally:
            for worker in [self._quick, *self._slow]:
                worker.end()

    def _turn(self) -> bool:
        """Whatever happens next; False when it is the end of the input."""
        is_busy = bool(self._quick.trial or self._slow or self._ending)
        readable = self._wait(LOOK_S if is_busy else None)
        self._account()
        if self._source in readable and not self._take():
            return False
        for worker in [self._quick, *self._slow]:
            if worker.source in readable:
                self._finish(worker)
            elif worker.trial is not None:
                self._watch(worker)
        self._begin()
        self._ending = [worker for worker in self._ending if not worker.is_gone]
        return True

    def _wait(self, timeout_s: float | None) -> set[int]:
        poller = select.poll()
        for source in (self._source, self._quick.source, *(worker.source for worker in self._slow)):
            poller.register(source, select.POLLIN)
        return {source for source, _ in poller.poll(None if timeout_s is None else 1000 * timeout_s)}

    def _take(self) -> bool:
        """Take in new trials; False at the end of the input."""
        data, now_s = os.read(self._source, READ_BYTES), time.monotonic()
        self._queue += [(msgspec.msgpack.decode(frame, type=Trial), now_s) for frame in self._frames.feed(data)]
        return bool(data)

    def _begin(self) -> None:
        """The next trial, if the quick worker is free; what waited too long is sent away."""
        now_s = time.monotonic()
        while self._queue and self._quick.trial is None:
            trial, arrived_s = self._queue.popleft()
            if now_s - arrived_s > self._deadline_s:
                self._say(Verdict(trial.key, is_overloaded=True))
            else:
                self._quick.begin(trial, now_s)

    def _finish(self, worker: Worker) -> None:
        """It has an answer, or is no more."""
        trial, reason = worker.trial, worker.answer()
        if trial is not None:
            self._say(Verdict(trial.key, BROKE_DOWN if reason is None else reason))
        if reason is None or worker in self._slow or worker.is_worn:
            self._remove(worker)

    def _account(self) -> None:
        """Time passes, and credit with it: it comes back, and slow workers that have to wait use it up."""
        now_s = time.monotonic()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        self._credit_s = min(self._max_credit_s, self._credit_s + CREDIT_RATE * passed_s)
        for worker in self._slow:
            if worker.waits(passed_s):
                self._credit_s -= passed_s

    def _watch(self, worker: Worker) -> None:
        """It is still busy: may it go on?"""
        trial, passed_s = worker.trial, time.monotonic() - worker.began_s
        assert trial is not None
        if worker in self._slow:
            if passed_s > self._deadline_s:
                reason = f"it takes longer than {self._deadline_s:g} s to compile: make it simpler"
                self._give_up(worker, Verdict(trial.key, reason))
            elif self._credit_s <= 0:
                self._give_up(worker, Verdict(trial.key, is_overloaded=True))
        elif worker.trial_cpu_s() > QUICK_CPU_S:
            if self._credit_s > 0 and len(self._slow) < NUM_SLOW:
                worker.yield_to_all()
                self._slow.append(worker)
                self._quick = self._fork()
            else:
                self._give_up(worker, Verdict(trial.key, is_overloaded=True))
        elif passed_s > self._deadline_s:
            self._give_up(worker, Verdict(trial.key, is_overloaded=True))

    def _give_up(self, worker: Worker, verdict: Verdict) -> None:
        self._say(verdict)
        self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        worker.end()
        self._ending.append(worker)
        if worker in self._slow:
            self._slow.remove(worker)
        else:
            self._quick = self._fork()

    def _fork(self) -> Worker:
        return Worker(self._compiler, max_bytes=self._max_bytes, deadline_s=self._deadline_s)

    def _say(self, verdict: Verdict) -> None:
        write_frame(self._sink, msgspec.msgpack.encode(verdict))


class Worker:
    """One forked process, seen from the warden. `trial` is what it is busy with."""

    def __init__(self, compiler: Compiler, *, max_bytes: int, deadline_s: float) -> None:
        (constraints, self._sink), (self.source, reasons) = os.pipe(), os.pipe()
        self.trial: Trial | None = None
        self.began_s = self._cpu_began_s = self._waited_s = 0.0
        self._pid = os.fork()
        if not self._pid:
            try:
                os.dup2(constraints, 0)
                os.dup2(reasons, 1)
                os.closerange(3, max(constraints, reasons, self._sink, self.source) + 1)  # other workers' ends as well
                serve_trials(compiler, max_bytes=max_bytes, deadline_s=deadline_s)
            finally:
                os._exit(0)
        os.close(constraints)
        os.close(reasons)
        self._max_bytes = num_bytes_of(self._pid) + max_bytes // 4

    def begin(self, trial: Trial, now_s: float) -> None:
        """Try a constraint."""
        self.trial, self.began_s, self._cpu_began_s = trial, now_s, usage_of(self._pid).cpu_s
        with contextlib.suppress(BrokenPipeError):  # then it has no answer either
            write_frame(self._sink, msgspec.msgpack.encode(trial.constraint))

    def answer(self) -> str | None:
        """The reason why its constraint cannot be served, or ""; None when the process has ended."""
        self.trial = None
        frames = FrameBuffer().feed(os.read(self.source, READ_BYTES))  # shorter than what a pipe takes at once
        return frames[0].decode() if frames else None

    @property
    def is_worn(self) -> bool:
        """Whether earlier trials left so much in its memory that it might be held against the next."""
        return num_bytes_of(self._pid) > self._max_bytes

    def trial_cpu_s(self) -> float:
        """Seconds of a core that its trial has had."""
        return usage_of(self._pid).cpu_s - self._cpu_began_s

    def waits(self, passed_s: float) -> bool:
        """Whether it had to wait for a core in the time that passed since it was asked the last time."""
        before_s, self._waited_s = self._waited_s, usage_of(self._pid).waited_s
        return self._waited_s - before_s > MAX_WAITING_SHARE * passed_s

    def yield_to_all(self) -> None:
        """From now on it runs only where nothing else would."""
        os.sched_setscheduler(self._pid, os.SCHED_IDLE, os.sched_param(0))

    @property
    def is_gone(self) -> bool:
        """Whether a process that was ended has given its memory back. One of low priority may take its time."""
        return os.waitpid(self._pid, os.WNOHANG) != (0, 0)

    def end(self) -> None:
        """Whatever it is doing. To be asked `is_gone` from then on until it is."""
        os.kill(self._pid, signal.SIGKILL)  # it exists until `is_gone` has seen it end
        os.close(self._sink)
        os.close(self.source)


class Usage(NamedTuple):
    """What a process had of the cores, and how long it was ready to run and had to wait."""

    cpu_s: float
    waited_s: float


def usage_of(pid: int) -> Usage:
    """Since its beginning. Where the kernel does not count the waiting, there is none."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            cpu_ns, waited_ns, _ = map(int, file.read().split())
        return Usage(cpu_ns / 1e9, waited_ns / 1e9)
    except FileNotFoundError:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return Usage((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 0.0)


def main() -> int:
    """Serve until the input ends. A vocabulary that no grammar can be applied to is the verdict about everything."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's to answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    start = msgspec.msgpack.decode(read_frame(0), type=Start)
    try:
        compiler = Compiler(start.vocabulary)
    except ValueError as error:
        reason = f"this model cannot follow constraints: {error}"
        while frame := read_frame(0):
            write_frame(1, msgspec.msgpack.encode(Verdict(msgspec.msgpack.decode(frame, type=Trial).key, reason)))
        return 1
    gc.collect()
    gc.freeze()  # what workers share they do not write to
    Warden(
        compiler,
        max_bytes=start.max_bytes,
        deadline_s=start.deadline_s,
        credit_s=start.credit_s,
        source=0,
        sink=1,
    ).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
