"""`phloem serve`: this process speaks HTTP and text and never loads torch; a second one, the engine, computes.

bind the port -> find the model -> start the engine process   (imports torch, loads weights)
                                -> load the tokenizer, HTTP    (meanwhile, here)
                                -> Ready: print a curl line, serve
SIGINT, SIGTERM -> refuse new requests, drain the open ones, stop the engine, exit 0 (a second signal: at once)
the engine dies -> every open request ends with an error, /health says 503; another is started as long as
                   --max-restarts allows, then exit 70 after LINGER_S
"""

from __future__ import annotations

import logging
import signal
import socket
import tempfile
import time
from types import FrameType
from typing import NoReturn

from phloem.core.resolve import Resolved
from phloem.launch import models
from phloem.launch.channels import check_nodes, expect_free
from phloem.launch.listen import listen
from phloem.launch.order import Order
from phloem.launch.process import EngineProcess
from phloem.launch.program_functions import load_functions
from phloem.launch.stages import Stages


def serve(resolved: Resolved, *, listener: socket.socket | None = None) -> int:
    """Serve until a signal or the engine's death, on `listener` if there is one already; the exit code."""
    started_s = time.monotonic()
    config = resolved.config
    signal.signal(signal.SIGTERM, _interrupt)  # until the event loop takes over: unwind, so that nothing is left behind
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    check_nodes(config)
    if config.node_rank:
        from phloem.launch.nodes import serve_node

        return serve_node(config)
    if config.meet is not None:
        expect_free(config.meet)
    stages = Stages(show_as="server")
    functions = load_functions(config.program_functions)
    listener = listener or listen(config.host, config.port)
    if config.dp > 1:
        from phloem.launch.replicated import serve_replicas

        return serve_replicas(resolved, listener)
    with stages.stage("find model"):
        location = models.locate(config.model)
    name = config.served_model_name or location.name
    with tempfile.TemporaryDirectory(prefix="phloem-") as folder:
        commands, events = f"ipc://{folder}/commands", f"ipc://{folder}/events"
        model = str(location.path or location.name)
        order = Order(config=config, model=model, name=name, commands_address=commands, events_address=events)
        with listener, EngineProcess(order) as engine:
            with stages.stage("import http"):  # while the engine imports torch
                from phloem.launch.front import build_front
                from phloem.launch.serving import Serving
            with stages.stage("load tokenizer"):
                front = build_front(config=config, order=order, location=location, functions=functions)
            return Serving(config=config, engine=engine, front=front, listener=listener, started_s=started_s).run()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
