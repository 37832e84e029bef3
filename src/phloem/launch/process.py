"""The engine process as its server sees it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

import msgspec

from phloem.launch.order import Order


class EngineProcess:
    """Started by the constructor; gone at the latest when the `with` block ends.

    The order travels on standard input, which then stays open: its end tells the engine that the server is gone.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process = _start(order)

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait(self) -> int:
        """Block until it has ended; the exit code, negative for a signal."""
        return self._process.wait()

    def restart(self) -> None:
        """Another in the place of one that has ended."""
        self.kill()
        self._process = _start(self._order)

    def kill(self) -> None:
        """End it now. Harmless when it ended by itself."""
        self._process.kill()
        self._process.wait()


def _start(order: Order) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-P", "-m", "phloem.launch.engine"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: wait() says so
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
    return process


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    hint = ", maybe for lack of memory" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"
