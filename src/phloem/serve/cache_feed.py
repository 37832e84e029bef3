"""Who follows the engine's prefix index, each with a queue of what it has not read yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from phloem.core import wire

MAX_UNREAD = 1024
"""Changes that a slow reader may fall behind before it loses all of them: it finds the gap and asks for a snapshot."""

Send = Callable[[wire.Command], None]


class CacheFeed:
    """Turns the engine's journal on for the first follower and off after the last."""

    def __init__(self) -> None:
        self._followers: dict[asyncio.Queue[wire.CacheChange], Send] = {}

    def route(self, change: wire.CacheChange) -> None:
        """Deliver to everybody."""
        for queue in self._followers:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
            queue.put_nowait(change)

    def engine_started(self) -> None:
        """Another engine knows of no followers."""
        if self._followers:
            send = next(iter(self._followers.values()))
            send(wire.WatchCache())

    async def changes(self, send: Send) -> AsyncGenerator[wire.CacheChange, None]:
        """A snapshot, then every change, until it is closed."""
        queue = asyncio.Queue[wire.CacheChange](MAX_UNREAD)
        self._followers[queue] = send
        send(wire.WatchCache())
        has_begun = False
        try:
            while True:
                change = await queue.get()
                has_begun = has_begun or change.is_snapshot  # what others followed before is not for this one
                if has_begun:
                    yield change
        finally:
            del self._followers[queue]
            if not self._followers:
                send(wire.WatchCache(on=False))
