"""The prefill side: computes prompts that other replicas ask for, and sends their pages while it still computes.

Each connection asks for one prompt: a request of one token to the scheduler, whose pages are reported as whole ones are
computed (`Computed`) and kept until they are sent (`Sent`).
"""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue

from phloem.core.errors import ConfigError
from phloem.core.request import SamplingParams
from phloem.core.wire import Abort, Command, Computed, Event, Failed, Finished, Sent, Submit, Tokens
from phloem.parallel.transfer.link import BEAT_S, Beat, Fetch, Link, Refused, TransferError
from phloem.runtime.handover.fetch import Posts
from phloem.runtime.handover.pages import PageBytes, send_pages
from phloem.runtime.loop import Outbox

NAME_PREFIX = "handover:"
ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)

_log = logging.getLogger("phloem.handover")


class GiveGate:
    """Listens on `host`:`port`, and is an `Outbox` around the engine's: events of its own requests end here."""

    def __init__(self, *, inbox: Posts, outbox: Outbox, pages: PageBytes, host: str, port: int) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._pages = pages
        self._events: dict[str, SimpleQueue[Event]] = {}
        self._serials = count()
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen for other replicas on {host} port {port}: {error.strerror}; choose another --kv-port",
                field="kv_port",
            ) from error
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, name="phloem-give", daemon=True).start()

    def poll(self, timeout_s: float | None) -> list[Command]:
        """As the inbox."""
        return self._inbox.poll(timeout_s)

    def send(self, events: list[Event]) -> None:
        """Pass events on but those of requests made here."""
        passed = []
        for event in events:
            match event:
                case Computed(name) | Tokens(name) | Finished(name) | Failed(name) if name.startswith(NAME_PREFIX):
                    if (queue := self._events.get(name)) is not None:
                        queue.put(event)
                case _:
                    passed.append(event)
        if passed:
            self._outbox.send(passed)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed: the engine ends
                return
            threading.Thread(target=self._answer, args=(Link(connection),), daemon=True).start()

    def close(self) -> None:
        """Take no more questions."""
        self._listener.close()

    def _answer(self, link: Link) -> None:
        try:
            self._serve(link)
        except TransferError as error:
            _log.warning("a replica that asked for a prompt is lost: %s", error)
        finally:
            link.close()

    def _serve(self, link: Link) -> None:
        fetch = link.receive()
        if not isinstance(fetch, Fetch):
            raise TransferError("an answer where a question belongs")
        if fetch.fingerprint != self._pages.fingerprint:
            link.send(Refused("another model, precision, page size or version: start both replicas alike"))
            return
        link.offer_slab(self._pages.piece_bytes)
        name = f"{NAME_PREFIX}{next(self._serials)}"
        self._events[name] = SimpleQueue()
        submit = Submit(name, fetch.tokens, ONE_TOKEN, namespace=fetch.namespace, sends_pages=True)
        self._inbox.post([submit])
        try:
            self._send_computed(link, fetch, self._events[name])
        finally:
            self._inbox.post([Abort(name), Sent(name)])
            del self._events[name]

    def _send_computed(self, link: Link, fetch: Fetch, events: SimpleQueue[Event]) -> None:
        num_sent = fetch.first_page
        while True:
            event: Event | None = None
            with suppress(Empty):
                event = events.get(timeout=BEAT_S)
            match event:
                case None:
                    link.send(Beat())
                case Computed(_, pages) if len(pages) > num_sent:
                    send_pages(link, self._pages, pages[num_sent:], first_page=num_sent)
                    num_sent = len(pages)
                case Finished():
                    link.finish()
                    return
                case Failed(_, _, why):
                    link.send(Refused(why))
                    return
                case _:
                    pass
