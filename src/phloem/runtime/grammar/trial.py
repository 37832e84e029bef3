"""The process in which a constraint is tried: `python -m phloem.runtime.grammar.trial`, started by sandbox.py.

It reads frames (4 bytes of length, msgpack) from standard input: first a `Start`, then constraints, and answers each on
standard output with "" or with the reason why it cannot be served. Its memory and its time are limited by the system;
the parent ends it when a deadline passes, and its own end of input ends it when the parent is gone.
"""

from __future__ import annotations

import resource
import sys

import msgspec

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint
from phloem.runtime.grammar.compile import NO_TEXT, Compiler, in_short
from phloem.runtime.grammar.frames import Start, read_frame, write_frame


def main() -> int:
    """Serve until the input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    start = msgspec.msgpack.decode(read_frame(source), type=Start)
    try:
        compiler = Compiler(start.vocabulary)
    except ValueError as error:
        write_frame(sink, f"this model cannot follow constraints: {error}".encode())
        return 1
    _limit_memory(start.max_bytes)
    write_frame(sink, b"")
    while frame := read_frame(source):
        _limit_cpu(start.deadline_s)
        write_frame(sink, judge(compiler, msgspec.msgpack.decode(frame, type=Constraint)).encode())
    return 0


def judge(compiler: Compiler, constraint: Constraint) -> str:
    """What is wrong with a constraint, or "": it compiles, and its first mask has a token."""
    try:
        matcher = compiler.compile(constraint)
    except InvalidRequest as error:
        return error.message
    except MemoryError:
        return "it needs more memory than a grammar may take"
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        return in_short(matcher.get_error())
    return "" if any(mask) else NO_TEXT


def _limit_memory(max_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        num_bytes = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes + max_bytes, num_bytes + max_bytes))


def _limit_cpu(deadline_s: float) -> None:
    """The system ends a trial that the parent, killed itself, cannot end."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime + 2 * deadline_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    sys.exit(main())
