"""The engine client of `LLM.run`: requests of asyncio tasks go to a loop that this thread turns itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from phloem.core import wire
from phloem.core.errors import EngineDead
from phloem.serve.client import OpenRequests, RequestEvent

IDLE_WAIT_S = 0.02
SETTLING_ROUNDS = 4
"""Rounds of the event loop between two steps: what a step's tokens set off is submitted before the next one, as one
batch. A task that needs more rounds joins one step later."""


class InProcessRequests:
    """`send` posts commands, `poll` takes what events there are, `turn` makes a step. It is False when there is none to
    make; then it has waited, at most the seconds given, for an open request whose grammar is still being compiled."""

    def __init__(
        self,
        *,
        send: Callable[[list[wire.Command]], None],
        poll: Callable[[], Sequence[wire.Event]],
        turn: Callable[[float], bool],
        on_stats: Callable[[wire.Stats], None],
    ) -> None:
        self._send_all, self._poll, self._turn, self._on_stats = send, poll, turn, on_stats
        self._requests = OpenRequests()
        self._outgoing: list[wire.Command] = []
        self._has_work = asyncio.Event()

    def generate(self, submit: wire.Submit) -> AsyncGenerator[RequestEvent, None]:
        """The request's events; closing it early aborts."""
        return self._requests.stream(submit, self._send)

    def stop_choice(self, request_id: str, choice: int) -> None:
        """Finish one choice with reason "stop"."""
        self._send(wire.Stop(request_id, choice))

    def release(self, leases: Sequence[str]) -> None:
        """Nobody needs these prefixes any more."""
        self._send(wire.Release(tuple(leases)))

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Requests are served inside; nothing is open afterwards, whatever happens."""
        pump = asyncio.ensure_future(self._pump())
        try:
            yield
        finally:
            if pump.done():
                pump.result()  # the engine's own error, not that requests failed with it
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            self._drain()

    async def _pump(self) -> None:
        try:
            while True:
                await self._has_work.wait()
                for _ in range(SETTLING_ROUNDS):
                    await asyncio.sleep(0)
                if not self._step() and not self._requests.ids:
                    self._has_work.clear()
        finally:
            self._requests.fail_all(EngineDead("the engine has stopped"))

    def _step(self) -> bool:
        self._send_all(self._outgoing)
        self._outgoing = []
        is_busy = self._turn(IDLE_WAIT_S if self._requests.ids else 0.0)
        for event in self._poll():
            if isinstance(event, wire.Stats):
                self._on_stats(event)
            self._requests.route(event)
        return is_busy

    def _drain(self) -> None:
        """What was aborted gives its pages back."""
        while self._step():
            pass

    def _send(self, command: wire.Command) -> None:
        self._outgoing.append(command)
        self._has_work.set()
