"""Where the ranks of a replica meet, and which of them run on this machine.

    one machine     a folder in shared memory: meeting, plans and results are files and local sockets
    several         --meet HOST:PORT on node 0: plans at PORT, results at PORT + 1, collectives at PORT + 2

Node r of n runs the r-th n-th of the ranks, so that ranks of one stage, neighbours in number, stay on one machine.
"""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from phloem.core.config import Config
from phloem.core.errors import ConfigError
from phloem.parallel.mailroom import shared_memory_works

MAX_MEET_PORT = 65535 - 2


class Channels(msgspec.Struct, frozen=True):
    """Three addresses."""

    meeting: str
    plans: str
    results: str


def channels_in(folder: Path) -> Channels:
    """Between processes of one machine."""
    plans = f"file://{folder}/plans" if shared_memory_works() else f"ipc://{folder}/plans"
    return Channels(f"file://{folder}/meeting", plans, f"ipc://{folder}/results")


def channels_between(meet: str) -> Channels:
    """Between machines. ConfigError when `meet` is no HOST:PORT, or the host is unknown."""
    host, _, text = meet.rpartition(":")
    if not host or not text.isdecimal() or not 0 < int(text) <= MAX_MEET_PORT:
        raise ConfigError(f"--meet {meet!r} is not HOST:PORT with a port of 1 to {MAX_MEET_PORT}", field="meet")
    try:
        address = socket.gethostbyname(host)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--meet {meet!r}: the host is not known here: {error}", field="meet") from error
    plans, results, meeting = (f"tcp://{address}:{int(text) + offset}" for offset in range(3))
    return Channels(meeting, plans, results)


def expect_free(meet: str) -> None:
    """ConfigError when node 0 cannot listen where the others will look for it."""
    channels = channels_between(meet)
    for address in (channels.plans, channels.results, channels.meeting):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                raise ConfigError(
                    f"--meet {meet}: node 0 cannot listen on {host} port {port}: {error.strerror}; name an address of "
                    "node 0 and a port with the two above it free",
                    field="meet",
                ) from error


def ranks_of_node(config: Config) -> range:
    """The ranks that run on this machine."""
    share = config.tp * config.pp // config.nodes
    return range(config.node_rank * share, (config.node_rank + 1) * share)


def check_nodes(config: Config) -> None:
    """ConfigError where the options of several machines contradict each other."""
    if config.nodes == 1:
        if config.node_rank:
            raise ConfigError("--node-rank needs --nodes", field="node_rank")
        return
    if config.meet is None:
        raise ConfigError("--nodes needs --meet HOST:PORT, an address of node 0 that every node reaches", field="meet")
    if config.node_rank >= config.nodes:
        raise ConfigError(f"--node-rank counts from 0 to {config.nodes - 1} with --nodes {config.nodes}",
                          field="node_rank")  # fmt: skip
    if (size := config.tp * config.pp) % config.nodes:
        raise ConfigError(f"--tp x --pp = {size} ranks do not divide over --nodes {config.nodes}", field="nodes")
    channels_between(config.meet)
