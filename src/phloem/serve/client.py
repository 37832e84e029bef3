"""EngineClient: the server's end of the engine. Every request that is opened ends with exactly one terminal event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

import msgspec
import zmq

from phloem.core import wire
from phloem.core.errors import EngineDead, InvalidRequest, PhloemError
from phloem.core.request import TokenLogprob
from phloem.serve.cache_feed import CacheFeed

RequestEvent = wire.Tokens | wire.Finished | wire.Failed


class EngineClient(Protocol):
    """What the front end knows of an engine, wherever it runs."""

    @property
    def is_alive(self) -> bool:
        """False once the engine died; true again when it was started anew and said Ready."""

    @property
    def engine(self) -> wire.Ready | None:
        """The engine's introduction, once it is ready."""

    def generate(self, submit: wire.Submit) -> AsyncGenerator[RequestEvent, None]:
        """Submit; yield the request's events; end after its terminal one. Closing it early sends Abort at once."""

    def abort(self, request_id: str) -> None:
        """Free the request now; its terminal event is Failed with code "aborted"."""

    def stop_choice(self, request_id: str, choice: int) -> None:
        """Finish one choice with reason "stop": its text met a stop string."""

    def release(self, leases: Sequence[str]) -> None:
        """Nobody needs these prefixes any more."""

    def cache_changes(self) -> AsyncGenerator[wire.CacheChange, None]:
        """A snapshot of the prefix index, then its changes, until it is closed."""

    def stats(self) -> wire.Stats | None:
        """The engine's latest counters."""

    async def ready(self) -> wire.Ready:
        """Wait until the engine serves. Raises EngineDead when it cannot."""

    def fail_all(self, error: PhloemError) -> None:
        """End every open request with `error`; an EngineDead also marks the engine as dead."""


class OpenRequests:
    """Routes each event to the request it belongs to, and remembers whether the engine lives."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[RequestEvent]] = {}
        self._changed = asyncio.Event()
        self.cache = CacheFeed()
        self.engine: wire.Ready | None = None
        self.stats: wire.Stats | None = None
        self.dead: PhloemError | None = None

    @property
    def ids(self) -> list[str]:
        """Requests without a terminal event so far, oldest first."""
        return list(self._queues)

    def route(self, event: wire.Event) -> None:
        """Deliver one event; events of requests that ended already are dropped."""
        match event:
            case wire.Tokens():
                if (queue := self._queues.get(event.request_id)) is not None:
                    queue.put_nowait(event)
            case wire.Finished() | wire.Failed():
                if (queue := self._queues.pop(event.request_id, None)) is not None:
                    queue.put_nowait(event)
            case wire.CacheChange():
                self.cache.route(event)
            case wire.Stats():
                self.stats = event
            case wire.Ready():
                self.engine, self.dead = event, None
                self._changed.set()
                self.cache.engine_started()
            case wire.Dead():
                self.fail_all(EngineDead(event.message, field=event.field))

    def fail_all(self, error: PhloemError) -> None:
        """A terminal event for everybody; an EngineDead stays, and wakes who waits for the engine."""
        for request_id in self.ids:
            self.route(wire.Failed(request_id=request_id, code=error.code, message=error.message))
        if isinstance(error, EngineDead):
            self.dead = error
            self._changed.set()

    async def wait_ready(self) -> wire.Ready:
        """The engine's Ready; raises what killed it."""
        while True:
            if self.dead is not None:
                raise self.dead
            if self.engine is not None:
                return self.engine
            self._changed.clear()
            await self._changed.wait()

    async def stream(
        self, submit: wire.Submit, send: Callable[[wire.Command], None]
    ) -> AsyncGenerator[RequestEvent, None]:
        """The life of one request, from Submit to its terminal event, or to Abort when the reader leaves."""
        request_id = submit.request_id
        if request_id in self._queues:
            raise InvalidRequest(f"request id {request_id!r} is already open", field="request_id")
        if self.dead is not None:
            yield wire.Failed(request_id=request_id, code=self.dead.code, message=self.dead.message)
            return
        queue = self._queues[request_id] = asyncio.Queue()
        ended = False
        try:
            send(submit)
            while not ended:
                event = await queue.get()
                ended = not isinstance(event, wire.Tokens)
                yield event
        finally:
            if self._queues.pop(request_id, None) is not None:
                send(wire.Abort(request_id))


class ZmqEngineClient:
    """An engine in another process. This side binds a PUSH for commands and a PULL for events; a frame is a msgpack
    list of messages (core.wire). Commands given in one turn of the event loop travel in one frame.

    The sockets' file descriptors are watched by the event loop itself: a frame costs one callback (zmq.asyncio costs a
    task switch and two futures more, for every token of a single stream). A descriptor signals a *change* of the
    socket's state (zmq_getsockopt, ZMQ_FD), so both callbacks go on until the socket says no.
    """

    def __init__(self, *, commands_address: str, events_address: str) -> None:
        self._commands_address = commands_address
        self._events_address = events_address
        self._requests = OpenRequests()
        self._outgoing: list[wire.Command] = []
        self._context = zmq.Context()
        self._commands = self._context.socket(zmq.PUSH)
        self._events = self._context.socket(zmq.PULL)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Bind both sockets and watch them in the running event loop. Call before the engine starts."""
        self._loop = asyncio.get_running_loop()
        for socket, address, react in (
            (self._commands, self._commands_address, self._flush),
            (self._events, self._events_address, self._receive),
        ):
            socket.set_hwm(0)
            socket.bind(address)
            self._loop.add_reader(socket.FD, react)

    async def close(self) -> None:
        """Fail what is open and release the sockets."""
        self.fail_all(EngineDead("the server is shutting down"))
        if self._loop is not None:
            self._loop.remove_reader(self._commands.FD)
            self._loop.remove_reader(self._events.FD)
        self._context.destroy(linger=0)

    @property
    def is_alive(self) -> bool:
        return self._requests.dead is None

    @property
    def engine(self) -> wire.Ready | None:
        return self._requests.engine

    def generate(self, submit: wire.Submit) -> AsyncGenerator[RequestEvent, None]:
        return self._requests.stream(submit, self.send)

    def abort(self, request_id: str) -> None:
        self.send(wire.Abort(request_id))

    def stop_choice(self, request_id: str, choice: int) -> None:
        self.send(wire.Stop(request_id, choice))

    def release(self, leases: Sequence[str]) -> None:
        self.send(wire.Release(tuple(leases)))

    def cache_changes(self) -> AsyncGenerator[wire.CacheChange, None]:
        return self._requests.cache.changes(self.send)

    def stats(self) -> wire.Stats | None:
        return self._requests.stats

    async def ready(self) -> wire.Ready:
        return await self._requests.wait_ready()

    def fail_all(self, error: PhloemError) -> None:
        for request_id in self._requests.ids:
            self.send(wire.Abort(request_id))
        if isinstance(error, EngineDead):
            self._outgoing.clear()  # a later engine must not meet its predecessor's requests
        self._requests.fail_all(error)

    def send(self, command: wire.Command) -> None:
        """Queue one command; never blocks. To a dead engine nothing is sent."""
        if not self.is_alive or self._loop is None:
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(command)

    def _flush(self) -> None:
        """Send what is queued. Without an engine at the other end it stays queued until one connects."""
        can_send = self._commands.getsockopt(zmq.EVENTS)  # asking also takes the signal off the descriptor
        if not self._outgoing or not can_send:
            return
        self._commands.send(wire.encode(self._outgoing), zmq.NOBLOCK)
        self._outgoing.clear()

    def _receive(self) -> None:
        while (frame := self._next_frame()) is not None:
            try:
                events = wire.decode_events(frame)
            except msgspec.DecodeError as error:
                self.fail_all(EngineDead(f"the engine sent an unreadable message: {error}"))
                continue
            for event in events:
                self._requests.route(event)

    def _next_frame(self) -> bytes | None:
        try:
            return self._events.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None


Script = Callable[[wire.Submit, int], Sequence[int]]
"""The token ids that one choice of a request generates, its end token included."""


def echo_prompt(submit: wire.Submit, choice: int) -> Sequence[int]:
    """The prompt again and again, as long as `max_tokens` asks."""
    repeats = -(-submit.sampling.max_tokens // len(submit.prompt))
    return (submit.prompt * repeats)[: submit.sampling.max_tokens]


class FakeEngineClient:
    """An engine in this process without a model: every choice says what `script` returns, one token a step, a step
    each `step_s`. Records what it was told. For tests of everything in front of the engine."""

    def __init__(
        self,
        *,
        ready: wire.Ready | None,
        script: Script = echo_prompt,
        end_ids: frozenset[int] = frozenset(),
        step_s: float = 0.0,
    ) -> None:
        self._requests = OpenRequests()
        self._script, self._end_ids, self._step_s = script, end_ids, step_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped: set[tuple[str, int]] = set()
        self.commands: list[wire.Command] = []
        if ready is not None:
            self._requests.route(ready)

    @property
    def is_alive(self) -> bool:
        return self._requests.dead is None

    @property
    def engine(self) -> wire.Ready | None:
        return self._requests.engine

    @property
    def open_ids(self) -> list[str]:
        """Requests without a terminal event."""
        return self._requests.ids

    def generate(self, submit: wire.Submit) -> AsyncGenerator[RequestEvent, None]:
        return self._requests.stream(submit, self._receive)

    def abort(self, request_id: str) -> None:
        self._receive(wire.Abort(request_id))

    def stop_choice(self, request_id: str, choice: int) -> None:
        self._receive(wire.Stop(request_id, choice))

    def release(self, leases: Sequence[str]) -> None:
        self._receive(wire.Release(tuple(leases)))

    def cache_changes(self) -> AsyncGenerator[wire.CacheChange, None]:
        return self._requests.cache.changes(self._receive)

    def stats(self) -> wire.Stats | None:
        return self._requests.stats

    async def ready(self) -> wire.Ready:
        return await self._requests.wait_ready()

    def fail_all(self, error: PhloemError) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._requests.fail_all(error)

    def route(self, event: wire.Event) -> None:
        """Say something as the engine would."""
        self._requests.route(event)

    def _receive(self, command: wire.Command) -> None:
        self.commands.append(command)
        match command:
            case wire.Submit():
                self._tasks[command.request_id] = asyncio.create_task(self._run(command))
            case wire.Stop():
                self._stopped.add((command.request_id, command.choice))
            case wire.Abort():
                if (task := self._tasks.pop(command.request_id, None)) is not None:
                    task.cancel()
                self.route(wire.Failed(command.request_id, code="aborted", message="aborted by the caller"))

    async def _run(self, submit: wire.Submit) -> None:
        request_id, sampling = submit.request_id, submit.sampling
        scripts = {choice: list(self._script(submit, choice)) for choice in range(sampling.n)}
        position = 0
        prompt_logprobs = _fake_logprobs(submit.prompt[1 + sampling.prompt_logprobs_start :], sampling.prompt_logprobs)
        while scripts:
            await asyncio.sleep(self._step_s)
            for choice, script in list(scripts.items()):
                token = script[position]
                is_end = token in self._end_ids and not sampling.ignore_eos
                is_stopped = is_end or (request_id, choice) in self._stopped
                is_last = position + 1 == min(len(script), sampling.max_tokens)
                finish = "stop" if is_stopped else "length" if is_last else None
                self.route(
                    wire.Tokens(
                        request_id=request_id,
                        choice=choice,
                        token_ids=(token,),
                        logprobs=_fake_logprobs((token,), sampling.logprobs),
                        prompt_logprobs=prompt_logprobs if choice == position == 0 else (),
                        finish=finish,
                        stop_token=token if is_end else None,
                    )
                )
                if finish is not None:
                    del scripts[choice]
            position += 1
        self.route(wire.Finished(request_id, len(submit.prompt), 0, position))


def _fake_logprobs(tokens: Sequence[int], count: int | None) -> tuple[TokenLogprob, ...]:
    if count is None:
        return ()
    return tuple(
        TokenLogprob(token, -0.5, 1, tuple((token + rank, -0.5 - rank) for rank in range(count))) for token in tokens
    )
