"""The two ends of the engine's post: ZeroMQ between processes, a queue within one.

Over ZeroMQ a frame is one msgpack list of messages (core.wire). The server binds both sockets, the engine connects.
"""

from __future__ import annotations

import time
from collections import deque
from threading import Condition, Lock
from typing import Generic, TypeVar

import zmq

from phloem.core.wire import Command, Event, decode_commands, encode

Message = TypeVar("Message")


class ZmqInbox:
    """Commands from a PULL socket."""

    def __init__(self, address: str, *, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.connect(address)
        own_address = f"inproc://commands-{id(self)}"  # what this process tells itself
        self._socket.bind(own_address)
        self._own = context.socket(zmq.PUSH)
        self._own.connect(own_address)
        self._lock = Lock()

    def post(self, commands: list[Command]) -> None:
        """From any thread of this process; in order, as one frame."""
        with self._lock:
            self._own.send(encode(commands))

    def poll(self, timeout_s: float | None) -> list[Command]:
        """All commands that have arrived; waits for the first at most `timeout_s`, or for ever (None)."""
        if timeout_s != 0.0:
            self._socket.poll(None if timeout_s is None else round(timeout_s * 1000))
        commands: list[Command] = []
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return commands
            commands += decode_commands(frame)

    def close(self) -> None:
        """Close the socket; what has not been read is lost."""
        with self._lock:
            self._own.close(linger=0)
        self._socket.close(linger=0)


class ZmqOutbox:
    """Events to a PUSH socket. Never blocks: the queue is unbounded, and the server drains it."""

    def __init__(self, address: str, *, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._socket.connect(address)

    def send(self, events: list[Event]) -> None:
        """One frame."""
        if events:
            self._socket.send(encode(events))

    def close(self, *, linger_s: float = 1.0) -> None:
        """Close the socket when what was sent has left, at most `linger_s` later."""
        self._socket.close(linger=round(linger_s * 1000))


class Mailbox(Generic[Message]):
    """Messages between threads of one process; an inbox for one side is an outbox for the other."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._arrived = Condition()

    def send(self, messages: list[Message]) -> None:
        """Deliver in order, and wake who waits."""
        with self._arrived:
            self._messages.extend(messages)
            self._arrived.notify()

    def post(self, messages: list[Message]) -> None:
        """As `send`: from any thread."""
        self.send(messages)

    def poll(self, timeout_s: float | None) -> list[Message]:
        """All messages that have arrived; waits for the first at most `timeout_s`, or for ever (None)."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._arrived:
            while not self._messages and timeout_s != 0.0:
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._arrived.wait(left_s)
            messages = list(self._messages)
            self._messages.clear()
        return messages
