"""The engine's client over real sockets: routing, aborts, death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
import zmq
import zmq.asyncio

from phloem.core import wire
from phloem.core.errors import EngineDead, InvalidRequest, RequestAborted
from phloem.core.request import SamplingParams
from phloem.serve.client import FakeEngineClient, ZmqEngineClient

pytestmark = pytest.mark.anyio
READY = wire.Ready(model="m", max_model_len=8, max_prompt_len=7, vocab_size=10)


def submit(name: str) -> wire.Submit:
    return wire.Submit(name, (1, 2), SamplingParams())


class Peer:
    """The engine's side of the sockets, driven by hand."""

    def __init__(self, commands: zmq.asyncio.Socket, events: zmq.asyncio.Socket) -> None:
        self._commands, self._events = commands, events

    async def say(self, *events: wire.Event) -> None:
        await self._events.send(wire.encode(list(events)))

    async def garble(self) -> None:
        await self._events.send(b"\xc1")

    async def hear(self) -> list[wire.Command]:
        return wire.decode_commands(await asyncio.wait_for(self._commands.recv(), 5))


@asynccontextmanager
async def connected(folder) -> AsyncIterator[tuple[ZmqEngineClient, Peer]]:
    addresses = f"ipc://{folder}/c", f"ipc://{folder}/e"
    client = ZmqEngineClient(commands_address=addresses[0], events_address=addresses[1])
    await client.start()
    context = zmq.asyncio.Context()
    commands, events = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    commands.connect(addresses[0])
    events.connect(addresses[1])
    try:
        yield client, Peer(commands, events)
    finally:
        await client.close()
        context.destroy(linger=0)


async def collect(client, command: wire.Submit) -> list[wire.Event]:
    async with aclosing(client.generate(command)) as events:
        return [event async for event in events]


async def test_events_reach_their_own_request_and_end_it(tmp_path):
    """Red when streams are crossed, or one goes on after its terminal event."""
    async with connected(tmp_path) as (client, peer):
        await peer.say(READY)
        assert await client.ready() == READY
        readers = [asyncio.create_task(collect(client, submit(name))) for name in "ab"]
        heard = await peer.hear()
        assert [command.request_id for command in heard] == ["a", "b"], "one turn of the loop is one frame"
        tokens = {name: wire.Tokens(name, 0, (ord(name),)) for name in "ab"}
        ends = {name: wire.Finished(name, 2, 0, 1) for name in "ab"}
        await peer.say(tokens["b"], tokens["a"], ends["a"], tokens["a"], ends["b"], ends["b"])
        assert await asyncio.gather(*readers) == [[tokens["a"], ends["a"]], [tokens["b"], ends["b"]]]


async def test_leaving_early_sends_abort_at_once_and_only_then(tmp_path):
    """Red when a reader that leaves keeps its request running, or a finished request is aborted."""
    async with connected(tmp_path) as (client, peer):
        async with aclosing(client.generate(submit("a"))) as events:
            reading = asyncio.create_task(anext(events))
            assert await peer.hear() == [submit("a")]
            await peer.say(wire.Tokens("a", 0, (1,)))
            await reading
        assert await peer.hear() == [wire.Abort("a")]
        reader = asyncio.create_task(collect(client, submit("b")))
        await peer.hear()
        await peer.say(wire.Finished("b", 2, 0, 0))
        await reader
        client.stop_choice("b", 3)
        assert await peer.hear() == [wire.Stop("b", 3)]


async def test_cancelling_the_reader_sends_abort(tmp_path):
    """Red when only a clean close aborts."""
    async with connected(tmp_path) as (client, peer):
        reader = asyncio.create_task(collect(client, submit("a")))
        await peer.hear()
        reader.cancel()
        assert await peer.hear() == [wire.Abort("a")]


async def test_death_ends_every_request_once_and_a_restart_revives(tmp_path):
    """Red when a request hangs on a dead engine, gets two ends, or the client stays dead after a new Ready."""
    async with connected(tmp_path) as (client, peer):
        readers = [asyncio.create_task(collect(client, submit(name))) for name in "ab"]
        await peer.hear()
        await peer.say(wire.Dead("engine_dead", "out of memory"))
        ended = await asyncio.wait_for(asyncio.gather(*readers), 2)
        assert [[event.code for event in events] for events in ended] == [["engine_dead"], ["engine_dead"]]
        assert not client.is_alive
        assert [event.message for event in await collect(client, submit("c"))] == ["out of memory"]
        with pytest.raises(EngineDead, match="out of memory"):
            await client.ready()
        await peer.say(READY)
        while not client.is_alive:
            await asyncio.sleep(0.001)
        assert await client.ready() == READY


async def test_unreadable_events_are_a_dead_engine(tmp_path):
    """Red when a garbled frame kills the receiving task and every request hangs."""
    async with connected(tmp_path) as (client, peer):
        reader = asyncio.create_task(collect(client, submit("a")))
        await peer.hear()
        await peer.garble()
        [failed] = await asyncio.wait_for(reader, 2)
        assert failed.code == "engine_dead"


async def test_fail_all_of_a_living_engine_aborts_there_and_stays_alive(tmp_path):
    """Red when drain leaves requests running in the engine, or marks it dead."""
    async with connected(tmp_path) as (client, peer):
        reader = asyncio.create_task(collect(client, submit("a")))
        await peer.hear()
        client.fail_all(RequestAborted("shutting down"))
        assert [event.code for event in await reader] == ["aborted"]
        assert await peer.hear() == [wire.Abort("a")]
        assert client.is_alive


async def test_waiting_for_ready_ends_when_the_engine_dies(tmp_path):
    """Red when a server waits forever for an engine that could not start."""
    async with connected(tmp_path) as (client, _):
        waiting = asyncio.create_task(client.ready())
        await asyncio.sleep(0)
        client.fail_all(EngineDead("exit code 2"))
        with pytest.raises(EngineDead, match="exit code 2"):
            await asyncio.wait_for(waiting, 2)


async def test_commands_wait_for_an_engine_that_is_not_there_yet(tmp_path):
    """Red when a command is lost, or sending blocks the server, because the engine connects late."""
    addresses = f"ipc://{tmp_path}/c", f"ipc://{tmp_path}/e"
    client = ZmqEngineClient(commands_address=addresses[0], events_address=addresses[1])
    await client.start()
    client.send(wire.Shutdown())
    await asyncio.sleep(0.02)
    context = zmq.asyncio.Context()
    commands = context.socket(zmq.PULL)
    commands.connect(addresses[0])
    assert wire.decode_commands(await asyncio.wait_for(commands.recv(), 5)) == [wire.Shutdown()]
    await client.close()
    context.destroy(linger=0)


async def test_stats_and_duplicate_ids():
    """Red when stats are not kept, or two requests share an id."""
    client = FakeEngineClient(ready=READY, step_s=0.01)
    stats = wire.Stats(*range(13))
    client.route(stats)
    assert client.stats() == stats
    async with aclosing(client.generate(submit("a"))) as first:
        await anext(first)
        with pytest.raises(InvalidRequest, match="already open"):
            await collect(client, submit("a"))
