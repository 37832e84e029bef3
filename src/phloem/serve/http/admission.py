"""The bounded queue in front of the engine: who may come in, and when the last one has left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from phloem.core.errors import Overloaded


class Ticket:
    """A place in the queue; a request of several prompts takes one for each."""

    def __init__(self, admission: Admission) -> None:
        self.num_places = 1
        self._admission = admission

    def widen(self, num_places: int) -> None:
        """Take as many places in all. Raises Overloaded when they are not there."""
        self._admission.take(num_places - self.num_places, held=self.num_places)
        self.num_places = num_places


class Admission:
    """Counts open requests. Full or draining, it refuses before anything of a request was read."""

    def __init__(self, *, max_queue: int) -> None:
        self.num_open = 0
        self.is_draining = False
        self._max_queue = max_queue
        self._idle = asyncio.Event()
        self._idle.set()

    def check(self) -> None:
        """Raise Overloaded when nobody may come in. Takes no place: a body that arrives slowly keeps nobody out."""
        if self.is_draining:
            raise Overloaded("the server is shutting down", retry_after_s=5)
        self._expect_room(1, held=0)

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Hold a place. Raises Overloaded."""
        self.check()
        self.take(1)
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            self._release(ticket.num_places)

    def take(self, num_places: int, *, held: int = 0) -> None:
        """Count more places as taken, for one who holds some. Raises Overloaded; who is alone may take any number."""
        self._expect_room(num_places, held=held)
        self.num_open += num_places
        self._idle.clear()

    def _expect_room(self, num_places: int, *, held: int) -> None:
        if self.num_open > held and self.num_open + num_places > self._max_queue:
            raise Overloaded(f"the queue is full ({self._max_queue} requests are open); try again later")

    def _release(self, num_places: int) -> None:
        self.num_open -= num_places
        if self.num_open == 0:
            self._idle.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse newcomers, let the others finish. False when some were still open after `timeout_s`."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
