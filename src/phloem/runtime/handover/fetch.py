"""The decode side: an inbox and outbox before the engine's that hold a request back until its prompt has arrived.

    Submit(kv_from)  -->  Reserve   --> scheduler       pages first
    Reserved         <--            <-- scheduler
        a thread:  Fetch -> Piece ... -> End            bytes straight into the reserved pages
    Received, Submit -->            --> scheduler       a cached prefix, and a request like any other

Whatever goes wrong in between, the request goes on: what did not arrive is computed here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec

from phloem.core.errors import InvalidRequest, RequestAborted
from phloem.core.wire import (
    Abort,
    Command,
    Event,
    Failed,
    Finished,
    Received,
    Release,
    Reserve,
    Reserved,
    Shutdown,
    Stop,
    Submit,
    Tokens,
)
from phloem.parallel.transfer.link import Beat, End, Fetch, Link, Offer, Piece, Refused, TransferError
from phloem.runtime.handover.pages import Arrivals, PageBytes
from phloem.runtime.loop import Inbox, Outbox

MAX_TRANSFERS = 16

_log = logging.getLogger("phloem.handover")


class Posts(Inbox, Protocol):
    """An inbox that other threads of this process can post to."""

    def post(self, commands: list[Command]) -> None: ...


class _Held:
    """A request whose prompt is on its way."""

    def __init__(self, submit: Submit) -> None:
        self.submit = submit
        self.is_cancelled = threading.Event()

    @property
    def plain(self) -> Submit:
        """The request without where its prompt comes from."""
        return msgspec.structs.replace(self.submit, kv_from=None)


class FetchGate:
    """An `Inbox` and an `Outbox` around others; `poll` and `send` are called by the engine's thread alone."""

    def __init__(self, *, inbox: Posts, outbox: Outbox, pages: PageBytes) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._pages = pages
        self._held: dict[str, _Held] = {}
        self._leased: set[str] = set()  # requests whose arrived pages are leased until they have started
        self._shutdown: Shutdown | None = None
        self._threads = ThreadPoolExecutor(MAX_TRANSFERS, thread_name_prefix="phloem-fetch")

    def poll(self, timeout_s: float | None) -> list[Command]:
        """All commands that the scheduler may see by now."""
        commands = [passed for command in self._inbox.poll(timeout_s) for passed in self._take(command)]
        if self._shutdown is not None and not self._held:
            commands.append(self._shutdown)
            self._shutdown = None
        return commands

    def send(self, events: list[Event]) -> None:
        """Pass events on but those that answer this gate."""
        passed = [event for event in events if not self._answers(event)]
        if passed:
            self._outbox.send(passed)

    def close(self) -> None:
        """Give up what is on its way."""
        for held in self._held.values():
            held.is_cancelled.set()
        self._threads.shutdown(wait=False)

    def _take(self, command: Command) -> list[Command]:
        match command:
            case Submit(request_id=name) if name in self._held:
                return self._take_again(command)
            case Submit(request_id=name) if command.kv_from is not None:
                self._held[name] = _Held(command)
                return [Reserve(name, self._whole_pages(command), command.namespace)]
            case Abort(request_id) if request_id in self._held:
                self._cancel(request_id, "aborted by the caller")
                return []
            case Stop(request_id) if request_id in self._held:
                return []  # nobody stops what has not begun
            case Shutdown(drain=True) if self._held:
                self._shutdown = command
                return []
            case Shutdown(drain=False):
                for request_id in list(self._held):
                    self._cancel(request_id, "the engine shut down")
        return [command]

    def _take_again(self, submit: Submit) -> list[Command]:
        """One that is held: what its own thread posts, or another of the same name."""
        name = submit.request_id
        if submit.kv_from is not None:
            self._outbox.send([Failed(name, InvalidRequest.code, "a request with this id is open")])
            return []
        held = self._held.pop(name)
        if not held.is_cancelled.is_set():
            self._leased.add(name)
            return [submit]
        return [Release((name,))]

    def _whole_pages(self, submit: Submit) -> tuple[int, ...]:
        """Of the prompt but its last token, whose logits are wanted here."""
        size = self._pages.page_size
        return submit.prompt[: (len(submit.prompt) - 1) // size * size]

    def _cancel(self, request_id: str, message: str) -> None:
        held = self._held[request_id]
        if not held.is_cancelled.is_set():
            held.is_cancelled.set()
            self._outbox.send([Failed(request_id, RequestAborted.code, message)])

    def _answers(self, event: Event) -> bool:
        match event:
            case Reserved(name, first_page, pages):
                held = self._held[name]
                if pages:
                    self._threads.submit(self._fetch, held, first_page, pages)
                else:
                    self._inbox.post([held.plain])
                return True
            case Tokens(request_id) | Finished(request_id) | Failed(request_id) if request_id in self._leased:
                self._leased.discard(request_id)
                self._inbox.post([Release((request_id,))])
        return False

    def _fetch(self, held: _Held, first_page: int, pages: tuple[int, ...]) -> None:
        """On a thread of its own: fill the pages, then let the request go, whatever came of it."""
        submit, began_s = held.submit, time.monotonic()
        arrivals = Arrivals(self._pages, pages, first_page=first_page)
        fetch = Fetch(self._pages.fingerprint, self._whole_pages(submit), first_page, submit.namespace)
        try:
            assert submit.kv_from is not None
            receive_pages(submit.kv_from, fetch, arrivals, is_cancelled=held.is_cancelled.is_set)
        except TransferError as error:
            _log.warning(
                "%s: %d of %d pages came from %s, the rest is computed here: %s",
                submit.request_id, arrivals.num_complete, len(pages), submit.kv_from, error,
            )  # fmt: skip
        finally:
            seconds = time.monotonic() - began_s
            _log.info("%s: %d bytes of pages in %.3f s", submit.request_id, arrivals.num_bytes, seconds)
            self._inbox.post([Received(submit.request_id, arrivals.num_complete), held.plain])


def receive_pages(address: str, fetch: Fetch, arrivals: Arrivals, *, is_cancelled: Callable[[], bool]) -> None:
    """Ask the replica at `address` and take what it sends. TransferError when it ends before its end."""
    link = Link.to(address)
    try:
        link.send(fetch)
        while not is_cancelled():
            match message := link.receive():
                case Piece():
                    arrivals.take(message, link)
                case End():
                    return
                case Refused(why):
                    raise TransferError(f"refused: {why}")
                case Beat():
                    continue
                case Offer():
                    link.answer_offer(message)
                case _:
                    raise TransferError("a question where an answer belongs")
    finally:
        link.close()
