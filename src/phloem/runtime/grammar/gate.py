"""The gate: an inbox before the engine's that holds a request back until its grammar is compiled by another thread.

What the scheduler sees is in the order of arrival but for requests that had to wait for their grammar. One that cannot
be compiled, or is aborted meanwhile, gets its terminal event here: the scheduler never hears of it.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from phloem.core.errors import InvalidRequest, RequestAborted, RequestFailed
from phloem.core.request import Constraint
from phloem.core.wire import Abort, Command, Event, Failed, Shutdown, Stop, Submit
from phloem.runtime.grammar.priority import yield_to_steps

WAIT_S = 0.001
"""How often an idle engine looks whether a grammar is ready."""

_log = logging.getLogger("phloem.grammar")


class Inbox(Protocol):
    """Where commands come from."""

    def poll(self, timeout_s: float | None) -> list[Command]:
        """All that have arrived; waits for the first at most `timeout_s`, or for ever (None)."""


class Outbox(Protocol):
    """Where events go."""

    def send(self, events: list[Event]) -> None:
        """Deliver them in order; does not block."""


class Compiles(Protocol):
    """The engine's grammars."""

    def has(self, constraint: Constraint) -> bool:
        """Whether it is compiled already."""

    def compile(self, constraint: Constraint) -> None:
        """Compile it; InvalidRequest when it cannot be. Safe to call from another thread."""


class GrammarGate:
    """An `Inbox` around another. `poll` is called by the engine's thread alone."""

    def __init__(self, *, inbox: Inbox, outbox: Outbox, grammars: Compiles) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._grammars = grammars
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="phloem-grammar", initializer=yield_to_steps)
        self._held: dict[str, tuple[Submit, Future[None]]] = {}
        self._shutdown: Shutdown | None = None  # one that waits for what is held

    def poll(self, timeout_s: float | None) -> list[Command]:
        """All commands that the scheduler may see by now."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            waits_s = left_s if not self._held else WAIT_S if left_s is None else min(left_s, WAIT_S)
            commands = [passed for command in self._inbox.poll(waits_s) for passed in self._take(command)]
            commands += self._ready()
            if commands or left_s == 0.0:
                return commands

    def _take(self, command: Command) -> list[Command]:
        """What passes at once: everything but a new constraint, and what concerns one that is held."""
        match command:
            case Submit(sampling=sampling) if (constraint := sampling.constraint) is not None:
                if self._grammars.has(constraint):
                    return [command]
                if command.request_id in self._held:
                    self._outbox.send(
                        [Failed(command.request_id, InvalidRequest.code, "a request with this id is open")]
                    )
                    return []
                self._held[command.request_id] = command, self._thread.submit(self._grammars.compile, constraint)
                return []
            case Abort(request_id) if request_id in self._held:
                self._drop(request_id, RequestAborted.code, "aborted by the caller")
                return []
            case Stop(request_id) if request_id in self._held:
                return []  # nobody stops what has not begun
            case Shutdown(drain=True) if self._held:
                self._shutdown = command
                return []
            case Shutdown(drain=False):
                for request_id in list(self._held):
                    self._drop(request_id, RequestAborted.code, "the engine shut down")
        return [command]

    def _ready(self) -> list[Command]:
        """Requests whose grammars are compiled since the last look, and the shutdown that waited for them."""
        ready: list[Command] = []
        for request_id, (submit, future) in list(self._held.items()):
            if not future.done():
                continue
            error = future.exception()
            if error is None:
                del self._held[request_id]
                ready.append(submit)
            elif isinstance(error, InvalidRequest):
                self._drop(request_id, error.code, error.message)
            else:
                _log.error("compiling a constraint failed", exc_info=error)
                self._drop(request_id, RequestFailed.code, f"the constraint could not be compiled: {error}")
        if self._shutdown is not None and not self._held:
            ready.append(self._shutdown)
            self._shutdown = None
        return ready

    def _drop(self, request_id: str, code: str, message: str) -> None:
        _, future = self._held.pop(request_id)
        future.cancel()
        self._outbox.send([Failed(request_id, code, message)])
