"""What a replica's role puts between its loop and the world: nothing, or the gate of a prefill or decode replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.runtime.handover.fetch import FetchGate, Posts
from phloem.runtime.handover.give import GiveGate
from phloem.runtime.handover.pages import PageBytes
from phloem.runtime.loop import Inbox, Outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """The ends of the loop's post. `address` is where a prefill replica answers others."""

    role: str
    inbox: Inbox
    outbox: Outbox
    address: str | None = None
    fingerprint: str = ""
    close: Callable[[], None] = lambda: None


def join_handover(config: Config, pages: PageBytes | None, *, inbox: Posts, outbox: Outbox) -> Handover:
    """The gate of `config.role`. ConfigError where this replica's pages cannot be sent, or its port is taken."""
    if config.role == "mixed":
        return Handover(role="mixed", inbox=inbox, outbox=outbox)
    if pages is None:
        raise ConfigError(
            f"--role {config.role} serves replicas of one process on a CPU so far; leave out --tp and --pp and choose "
            "--device cpu, or leave out --role",
            field="role",
        )
    if not config.prefix_cache:
        raise ConfigError(f"--role {config.role} hands over cached prefixes; leave out --no-prefix-cache", field="role")
    if config.role == "decode":
        fetch = FetchGate(inbox=inbox, outbox=outbox, pages=pages)
        return Handover(role="decode", inbox=fetch, outbox=fetch, fingerprint=pages.fingerprint, close=fetch.close)
    give = GiveGate(inbox=inbox, outbox=outbox, pages=pages, host=config.host, port=config.kv_port)
    return Handover(
        role="prefill",
        inbox=give,
        outbox=give,
        address=give.address,
        fingerprint=pages.fingerprint,
        close=give.close,
    )
