"""Who may have a request under way: at most so many, and among those that wait, the first in the program's order."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """`depth_first`: a place goes to the earliest branch that waits, with all that is inside it, so that what it has in
    the cache is used before it has to go; otherwise to whoever has waited longest."""

    def __init__(self, *, num_places: int, depth_first: bool) -> None:
        self._num_free = max(1, num_places)
        self._depth_first = depth_first
        self._arrivals = itertools.count()
        self._waiting: list[tuple[tuple[int, ...], int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def place(self, path: tuple[int, ...]) -> AsyncIterator[None]:
        """Hold a place; `path` is the branch's position in the program."""
        await self._enter(path)
        try:
            yield
        finally:
            self._num_free += 1
            self._admit()

    async def _enter(self, path: tuple[int, ...]) -> None:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (path if self._depth_first else (), next(self._arrivals), ready))
        self._admit()
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():  # it was let in, and leaves at once
                self._num_free += 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._num_free and self._waiting:
            *_, ready = heapq.heappop(self._waiting)
            if not ready.done():
                self._num_free -= 1
                ready.set_result(None)
