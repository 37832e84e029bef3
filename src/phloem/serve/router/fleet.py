"""The replicas behind a router: who is there, who is well, and what each one's cache holds.

    joining --(ready, and the right model)--> ready --(DELETE, drain)--> draining --> gone
       ^                                        |
       `---------- lost: unreachable, or its circuit breaker opened ----'

A replica that is lost has all its connections dropped: who waits for it learns that no answer comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import aclosing
from typing import Literal

import msgspec

from phloem.core.clock import Clock
from phloem.core.errors import ConfigError, InvalidRequest
from phloem.parallel.cache_view import StaleView
from phloem.parallel.replicas import Load, Offer, Prompt, least_tokens
from phloem.serve.http.cache_events import decode_change
from phloem.serve.openai.responses import ModelList
from phloem.serve.router.upstream import Address, Connection, Headers, Pool, UpstreamLost

log = logging.getLogger("phloem.router")

State = Literal["joining", "ready", "draining", "lost", "refused"]
PROBE_INTERVAL_S, PROBE_TIMEOUT_S = 0.5, 4.0
MAX_FAILED_PROBES = 2
MAX_FAILURES = 3
"""Requests that failed one after the other before the breaker opens."""
BREAKER_S, MAX_BREAKER_S = 1.0, 30.0
FEED_TIMEOUT_S = 10.0
"""Without a sign of life for so long, what is known of a cache is stale."""
DRAIN_POLL_S = 0.05

_decode_models = msgspec.json.Decoder(ModelList).decode
_decode_offer = msgspec.json.Decoder(Offer).decode


class Breaker:
    """Opens after failures in a row, for twice as long each time; then one request may try."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._num_failures = 0
        self._open_until_s = float("-inf")
        self._is_trying = False

    @property
    def allows(self) -> bool:
        """Whether a request may be sent."""
        if self._num_failures < MAX_FAILURES:
            return True
        return not self._is_trying and self._clock.now_s() >= self._open_until_s

    def sent(self) -> None:
        """A request goes out."""
        self._is_trying = self._num_failures >= MAX_FAILURES

    def succeeded(self) -> None:
        """A request was answered."""
        self._num_failures, self._is_trying = 0, False

    def abandoned(self) -> None:
        """A request ended without saying anything of the replica."""
        self._is_trying = False

    def failed(self) -> None:
        """A request was not answered."""
        self._num_failures, self._is_trying = self._num_failures + 1, False
        if (beyond := self._num_failures - MAX_FAILURES) >= 0:
            self._open_until_s = self._clock.now_s() + min(MAX_BREAKER_S, BREAKER_S * 2 ** min(beyond, 10))


class Replica:
    """One of them. Changed by the fleet only."""

    def __init__(self, address: Address, clock: Clock) -> None:
        self.address = address
        self.pool = Pool(address)
        self.load = Load(address.url)
        self.offer = Offer()
        self.breaker = Breaker(clock)
        self.state: State = "joining"
        self.reason = ""
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def is_available(self) -> bool:
        """Whether it may be given work."""
        return self.state == "ready" and self.breaker.allows


class Fleet:
    """Owns the replicas and the tasks that watch them. Without `model`, the first replica's is everybody's."""

    def __init__(self, *, clock: Clock, api_key: str | None = None, model: str | None = None) -> None:
        self._clock = clock
        self._headers: Headers = [] if api_key is None else [(b"authorization", f"Bearer {api_key}".encode())]
        self.model = model
        self.replicas: dict[str, Replica] = {}

    def available(self) -> list[Replica]:
        """Those that take requests: prefill replicas get prompts from decode replicas only."""
        return [one for one in self.replicas.values() if one.is_available and one.offer.role != "prefill"]

    def prefill_for(self, replica: Replica, prompt: Prompt) -> Replica | None:
        """The least loaded of those that can compute `prompt` for `replica`; None if it has to do it by itself."""
        able = {
            one.load.name: one
            for one in self.replicas.values()
            if one.is_available and one.offer.computes_for(replica.offer)
        }
        return able[least_tokens(prompt, [one.load for one in able.values()]).name] if able else None

    async def add(self, url: str) -> Replica:
        """Watch another replica; one that is not there yet joins when it is. InvalidRequest for a bad address, for one
        that is known, and for a replica with another model."""
        try:
            replica = Replica(Address(url), self._clock)
        except ValueError as error:
            raise InvalidRequest(str(error), field="url") from error
        if replica.address.url in self.replicas:
            raise InvalidRequest(f"{replica.address.url} is a replica already", field="url")
        self.replicas[replica.address.url] = replica
        with contextlib.suppress(UpstreamLost, TimeoutError):
            await self._probe(replica)
        if replica.state == "refused":
            del self.replicas[replica.address.url]
            replica.pool.abort()
            raise ConfigError(f"replica {replica.address.url} is refused: {replica.reason}", field="replica")
        replica.tasks = [asyncio.create_task(self._watch(replica)), asyncio.create_task(self._follow(replica))]
        return replica

    async def remove(self, name: str, *, drain_timeout_s: float) -> None:
        """Send it nothing more, let it finish what it has, forget it. InvalidRequest if there is none of that name."""
        if (replica := self.replicas.get(name)) is None:
            raise InvalidRequest(f"no replica {name[:200]!r}; GET /replicas lists them", field="replica")
        replica.state = "draining"
        deadline_s = self._clock.now_s() + drain_timeout_s
        while replica.load.num_requests and self._clock.now_s() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        self.replicas.pop(name, None)
        await self._end(replica)

    async def close(self) -> None:
        """Watch nobody any more."""
        for replica in list(self.replicas.values()):
            await self._end(replica)

    def lost(self, replica: Replica, reason: str) -> None:
        """It is gone, or as good as gone."""
        if replica.state != "draining":
            if replica.state == "ready":
                log.warning("replica %s is lost: %s", replica.address.url, reason)
            replica.state, replica.reason = "lost", reason
        replica.load.view.forget()
        replica.pool.abort()

    async def _end(self, replica: Replica) -> None:
        for task in replica.tasks:
            task.cancel()
        await asyncio.gather(*replica.tasks, return_exceptions=True)
        replica.pool.abort()

    # -- health

    async def _watch(self, replica: Replica) -> None:
        num_failed = 0
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            try:
                await self._probe(replica)
                num_failed = 0
            except (UpstreamLost, TimeoutError) as error:
                num_failed += 1
                if num_failed >= MAX_FAILED_PROBES:
                    self.lost(replica, str(error) or f"no answer from /ready in {PROBE_TIMEOUT_S:g} s")

    async def _probe(self, replica: Replica) -> None:
        """Ask whether it is ready, and before it (re)joins, for its model and its role."""
        status, _ = await self._get(replica, b"/ready")
        if replica.state == "draining":
            return
        if status != 200:
            replica.state, replica.reason = "joining", "it says that it is not ready"
        elif replica.state != "ready":
            _, body = await self._get(replica, b"/v1/models")
            replica.offer = await self._read_offer(replica)
            self._judge(replica, body)

    async def _read_offer(self, replica: Replica) -> Offer:
        """Its role. A server that knows no roles has none; one that fails to say is asked again (UpstreamLost)."""
        status, body = await self._get(replica, b"/transfer")
        if status >= 500:
            raise UpstreamLost(f"/transfer says {status}")
        try:
            return _decode_offer(body) if status == 200 else Offer()
        except msgspec.DecodeError as error:
            log.warning("replica %s is taken for one without a role: its /transfer: %s", replica.address.url, error)
            return Offer()

    def _judge(self, replica: Replica, body: bytes) -> None:
        if replica.state == "draining":
            return
        try:
            names = [card.id for card in _decode_models(body).data]
        except msgspec.DecodeError:
            names = []
        self.model = self.model or (names[0] if names else None)
        if self.model is not None and self.model in names:
            replica.state, replica.reason = "ready", ""
            replica.breaker.succeeded()
            return
        serves = f"it serves {names[0]!r}" if names else "it does not say what it serves"
        if replica.state != "refused":
            log.warning("replica %s is refused: %s, not %r", replica.address.url, serves, self.model)
        replica.state, replica.reason = "refused", f"{serves}, the others {self.model!r}; give it a router of its own"

    async def _get(self, replica: Replica, target: bytes) -> tuple[int, bytes]:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            connection = await replica.pool.request("GET", target, self._headers)
            try:
                return connection.status, await connection.body()
            finally:
                replica.pool.release(connection)

    # -- caches

    async def _follow(self, replica: Replica) -> None:
        """Keep the view of a cache: connect, snapshot, changes; after a gap or a silence once more from the start."""
        while True:
            try:
                if replica.state in ("ready", "draining"):
                    connection = await replica.pool.request("GET", b"/cache/events", self._headers)
                    try:
                        await self._read_changes(replica, connection)
                    finally:
                        replica.pool.release(connection)
            except (UpstreamLost, TimeoutError, StaleView, msgspec.DecodeError) as error:
                log.info("the cache of %s is unknown for now: %s", replica.address.url, error)
            replica.load.view.forget()
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _read_changes(self, replica: Replica, connection: Connection) -> None:
        if connection.status != 200:
            return
        buffer = b""
        async with aclosing(connection.chunks()) as chunks:
            while True:
                async with asyncio.timeout(FEED_TIMEOUT_S):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                *events, buffer = (buffer + chunk).split(b"\n\n")
                for event in events:
                    if event.startswith(b"data: "):
                        replica.load.view.apply(decode_change(event[6:]))
