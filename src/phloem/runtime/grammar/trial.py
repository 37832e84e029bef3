"""What a worker of the warden does: constraints in, reasons out, until its input ends or it is ended.

A worker is forked from the warden, so it has read the vocabulary already. Its memory and its time are limited by the
system, too: should the warden be gone, a trial still ends.
"""

from __future__ import annotations

import os
import resource

import msgspec
import numpy as np

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint
from phloem.runtime.grammar.compile import NO_TEXT, Compiler, in_short
from phloem.runtime.grammar.frames import read_frame, write_frame

NUM_FOLLOWED = 16
"""Tokens of a trial text. Each costs what a mask does, a twentieth of a millisecond mostly."""


def serve_trials(compiler: Compiler, *, max_bytes: int, deadline_s: float) -> None:
    """Read constraints from standard input, write "" or why it cannot be served to standard output, for each."""
    num_bytes = num_bytes_of(os.getpid()) + max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    while frame := read_frame(0):
        _limit_cpu(deadline_s)
        write_frame(1, judge(compiler, msgspec.msgpack.decode(frame, type=Constraint)).encode())


def judge(compiler: Compiler, constraint: Constraint) -> str:
    """What is wrong with a constraint, or "": it compiles, its first mask has a token, and one of the texts that begin
    with it can be followed for some tokens. (Whether all can, nobody can tell: see Matcher.fault.)"""
    try:
        matcher = compiler.compile(constraint)
    except InvalidRequest as error:
        return error.message
    except MemoryError:
        return "it needs more memory than a grammar may take"
    for place in range(NUM_FOLLOWED):
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            return in_short(matcher.get_error())
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        if not allowed.size:
            return NO_TEXT
        if matcher.is_stopped() or not matcher.consume_token(int(allowed[place * allowed.size // NUM_FOLLOWED])):
            break
    return in_short(matcher.get_error()) if matcher.is_error() else ""


def num_bytes_of(pid: int) -> int:
    """A process's address space."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit_cpu(deadline_s: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime + 2 * deadline_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
