"""The server's life after both halves were started: wait for the engine, serve, drain, and answer for its death: start
another in its place, or exit."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import time
from typing import Any

import msgspec
import uvloop

from phloem.core import wire
from phloem.core.config import Config
from phloem.core.errors import ConfigError, EngineDead, Overloaded
from phloem.launch.front import Front
from phloem.launch.order import EXIT_CALLER
from phloem.launch.process import EngineProcess, describe_exit

EXIT_OK, EXIT_ENGINE_DIED = 0, 70
LINGER_S = 3.0
"""After the engine's death: long enough to read 503 from /health, short enough to be restarted soon."""
ENGINE_STOP_S = 3.0
GROUP_RESTARTS = 3
CONSTRAINTS_AFTER_S = 2.0
"""The process that tries constraints starts so long after Ready, or with the first: not beside the first answers."""
LAST_WORD_S = 0.5
"""For a message that a dying engine may have sent just before."""


class Serving:
    """From two starting halves to an exit code: waits for the engine, then for a signal or the engine's death."""

    def __init__(
        self, *, config: Config, engine: EngineProcess, front: Front, listener: socket.socket, started_s: float
    ) -> None:
        self._config, self._engine, self._front, self._listener = config, engine, front, listener
        self._started_s = started_s
        self._num_restarts_left = max_restarts(config)
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()  # the first signal, the second

    def run(self) -> int:
        """Serve in an event loop of its own; EngineDead or ConfigError when the engine cannot start."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._run())

    async def _run(self) -> int:
        await self._front.client.start()
        died = asyncio.create_task(asyncio.to_thread(self._engine.wait))
        stopped = asyncio.create_task(self._stop.wait())
        http = asyncio.create_task(self._front.http.serve(sockets=[self._listener]))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        try:
            if await self._engine_started(died, stopped):
                gc.freeze()  # nothing made while starting is garbage, and a large body would have all of it searched
                asyncio.get_running_loop().call_later(CONSTRAINTS_AFTER_S, self._front.constraints.start)
                print(self._greeting(), flush=True)
            await asyncio.wait({died, stopped}, return_when=asyncio.FIRST_COMPLETED)
            while died.done() and self._num_restarts_left and not stopped.done():
                died = self._restart(died.result())
                await asyncio.wait({died, stopped}, return_when=asyncio.FIRST_COMPLETED)
            exit_code = await (self._after_death(died, stopped) if died.done() else self._drain(died))
            self._front.http.should_exit = True
            await asyncio.to_thread(
                self._front.constraints.close
            )  # whoever waits for a verdict is answered, not cut off
            await http
            return exit_code
        finally:
            self._engine.kill()
            self._front.constraints.close()
            await self._front.client.close()

    def _on_signal(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _engine_started(self, died: asyncio.Task[int], stopped: asyncio.Task[bool]) -> bool:
        """Wait for Ready; False when a signal came first."""
        ready = asyncio.create_task(self._front.client.ready())
        await asyncio.wait({ready, died, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done() and died.done():
            await asyncio.wait({ready}, timeout=LAST_WORD_S)
        if not ready.done():
            ready.cancel()
            if died.done():
                raise EngineDead(f"the engine process ended while it was starting: {describe_exit(died.result())}")
            return False
        try:
            ready.result()
        except EngineDead as error:  # it said why: the exit code says whose fault it is
            await asyncio.wait({died}, timeout=ENGINE_STOP_S)
            if died.done() and died.result() == EXIT_CALLER:
                raise ConfigError(error.message, field=error.field) from error
            raise
        return True

    def _restart(self, exit_code: int) -> asyncio.Task[int]:
        """Fail what is open and start another engine; /health says 503 until it is ready."""
        self._num_restarts_left -= 1
        message = f"the engine process ended: {describe_exit(exit_code)}"
        self._front.client.fail_all(EngineDead(f"{message}; it is being started again"))
        left = f"{self._num_restarts_left} more times"
        print(f"phloem: {message}; starting it again ({left})", file=sys.stderr, flush=True)
        self._engine.restart()
        return asyncio.create_task(asyncio.to_thread(self._engine.wait))

    async def _after_death(self, died: asyncio.Task[int], stopped: asyncio.Task[bool]) -> int:
        """Answer everybody, then stay a moment so that /health can be seen to fail."""
        message = f"the engine process ended: {describe_exit(died.result())}"
        self._front.client.fail_all(EngineDead(message))
        print(f"phloem: error: {message}; exiting in {LINGER_S:g} s", file=sys.stderr, flush=True)
        await asyncio.wait({stopped}, timeout=LINGER_S)
        return EXIT_ENGINE_DIED

    async def _drain(self, died: asyncio.Task[int]) -> int:
        """Let open requests finish for as long as the configuration allows, then end the rest and the engine."""
        print("phloem: stopping; a second signal stops at once", file=sys.stderr, flush=True)
        drained = asyncio.create_task(self._front.admission.drain(self._config.drain_timeout_s))
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drained, hurried, died}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, hurried):
            task.cancel()
        client = self._front.client
        if died.done():
            client.fail_all(EngineDead(f"the engine process ended: {describe_exit(died.result())}"))
            return EXIT_ENGINE_DIED
        client.fail_all(Overloaded("the server is shutting down; send the request again"))
        client.send(wire.Shutdown(drain=False))
        if client.engine is not None:  # one that is still starting does not listen yet
            await asyncio.wait({died}, timeout=ENGINE_STOP_S)
        return EXIT_OK

    def _greeting(self) -> str:
        ready = self._front.client.engine
        assert ready is not None
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        key = " -H 'Authorization: Bearer '\"$KEY\"" if self._config.api_key else ""
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]}
        path, prompt = ("chat/completions", chat) if self._front.can_chat else ("completions", {"prompt": "Hello"})
        data = msgspec.json.encode({"model": ready.model, **prompt, "max_tokens": 64}).decode()
        return (
            f"  {ready.memory}\n"
            f"serving {ready.model} on {url} after {time.monotonic() - self._started_s:.2f} s "
            f"(context {ready.max_model_len:,} tokens); try:\n"
            f"  curl -s {url}/v1/{path}{key} -H 'Content-Type: application/json' -d '{data}'"
        )


def max_restarts(config: Config) -> int:
    """How often a dead engine is replaced: a group of ranks dies of reasons that say nothing about the next one."""
    if config.max_restarts is not None:
        return config.max_restarts
    return GROUP_RESTARTS if config.tp * config.pp > 1 else 0
