"""`phloem router`: one process in front of replicas on this machine or others. It never loads torch.

bind the port -> ask each replica for its model (another one: exit 2; not there yet: it joins when it is)
              -> print a curl line, route
SIGINT, SIGTERM -> refuse new requests, let the open ones finish, exit 0 (a second signal: at once)
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys

import uvicorn
import uvloop

from phloem.core.clock import MonotonicClock
from phloem.core.errors import ConfigError, InvalidRequest
from phloem.launch import models
from phloem.launch.front import BYTES_PER_MB, HTTP_STOP_S, HttpServer
from phloem.launch.listen import listen
from phloem.launch.text import load_text_of
from phloem.parallel.replicas import Routing, make_policy
from phloem.serve.http.admission import Admission
from phloem.serve.router.app import Admin, create_router_app
from phloem.serve.router.fleet import Fleet
from phloem.serve.router.metrics import RouterMetrics
from phloem.serve.router.prompt import PromptReader
from phloem.serve.router.proxy import Proxy
from phloem.serve.text.load import TextModel

EXIT_OK = 0
KEEP_ALIVE_S = 75


class Router:
    """Fleet, proxy and HTTP server of one router, to be run in one event loop."""

    def __init__(
        self,
        *,
        policy: str,
        text: TextModel | None,
        model: str | None,
        api_key: str | None,
        admin_key: str | None,
        max_queue: int,
        max_body_mb: float,
    ) -> None:
        self.fleet = Fleet(clock=MonotonicClock(), api_key=api_key, model=model)
        self.admission = Admission(max_queue=max_queue)
        metrics = RouterMetrics(lambda: [(one.load, one.is_available) for one in self.fleet.replicas.values()])
        proxy = Proxy(
            fleet=self.fleet,
            routing=Routing(make_policy(policy)),
            reader=PromptReader(text),
            admission=self.admission,
            metrics=metrics,
            max_body_bytes=int(max_body_mb * BYTES_PER_MB),
        )
        admin = Admin(fleet=self.fleet, admission=self.admission, metrics=metrics, admin_key=admin_key)
        self.http = HttpServer(
            uvicorn.Config(
                create_router_app(admin, proxy),
                lifespan="off",
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,  # replicas' answers carry one
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=HTTP_STOP_S,
            )
        )

    async def run(self, listener: socket.socket, *, replicas: list[str], drain_timeout_s: float) -> int:
        """Route until a signal. ConfigError for a replica that cannot be one of these."""
        stop, hurry = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
        try:
            await self.add_all(replicas)
            http = asyncio.create_task(self.http.serve(sockets=[listener]))
            print(self._greeting(listener), flush=True)
            await stop.wait()
            await self.drain(hurry, drain_timeout_s=drain_timeout_s)
            self.http.should_exit = True
            await http
        finally:
            await self.fleet.close()
        return EXIT_OK

    async def add_all(self, urls: list[str]) -> None:
        """One after the other, so that the first that is there says what model this is about."""
        for url in urls:
            try:
                await self.fleet.add(url)
            except InvalidRequest as error:
                raise ConfigError(f"--replica: {error.message}", field="replica") from error

    async def drain(self, hurry: asyncio.Event, *, drain_timeout_s: float) -> None:
        """Refuse newcomers; wait for those inside, unless there is a hurry."""
        print("phloem: stopping; a second signal stops at once", file=sys.stderr, flush=True)
        waits = {
            asyncio.create_task(self.admission.drain(drain_timeout_s)),
            asyncio.create_task(hurry.wait()),
        }
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _greeting(self, listener: socket.socket) -> str:
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        states = ", ".join(f"{one.address.url} ({one.state})" for one in self.fleet.replicas.values())
        return f"routing to {states or 'nobody yet'}\non {url}; try:\n  curl -s {url}/v1/models"


def route(options: argparse.Namespace) -> int:
    """Route until a signal; the exit code. ConfigError names the option that is wrong."""
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"option port: expected 0 to 65535 (given: {options.port})", field="port")
    if min(options.max_queue, options.max_body_mb) <= 0 or options.drain_timeout_s < 0:
        raise ConfigError("--max-queue and --max-body-mb must be more than 0, --drain-timeout-s not less")
    listener = listen(options.host, options.port)
    text = None if options.model is None else load_text_of(models.locate(options.model))
    router = Router(
        policy=options.policy,
        text=text,
        model=None,
        api_key=options.api_key,
        admin_key=options.admin_key,
        max_queue=options.max_queue,
        max_body_mb=options.max_body_mb,
    )
    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(router.run(listener, replicas=options.replica, drain_timeout_s=options.drain_timeout_s))
