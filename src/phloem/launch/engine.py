"""The engine process: `python -m phloem.launch.engine`, started by launch.serve with its order on standard input.

It connects to the server's two sockets, builds the engine, says Ready (or Dead, with the typed error) and runs the loop
until it is told to shut down. It ignores SIGINT and SIGTERM, which are the server's to answer, and it lives no longer
than the server: standard input stays open as long as the server lives, and its end ends this process.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading

import msgspec
import zmq

from phloem.core import wire
from phloem.core.errors import CallerError, ConfigError, PhloemError
from phloem.launch.order import EXIT_CALLER, EXIT_ENGINE, Order
from phloem.launch.stages import Stages
from phloem.runtime.mailbox import ZmqInbox, ZmqOutbox


def main() -> int:
    """Run one engine; the exit code is 0 after an orderly shutdown, 2 for the caller's fault, 1 for anything else."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    threading.Thread(target=_die_with_server, args=(sys.stdin.fileno(),), daemon=True).start()
    if order.has_weights:  # what takes longest, while this thread imports the rest
        threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()
    return run(order)


def run(order: Order) -> int:
    """Build the engine that `order` describes and serve until Shutdown."""
    gc.disable()  # nothing made while starting is garbage: looking for it takes a tenth of the time
    from phloem.launch.wiring import build_engine, leave

    stages = Stages(show_as="engine")
    context = zmq.Context[zmq.Socket[bytes]]()
    inbox = ZmqInbox(order.commands_address, context=context)
    outbox = ZmqOutbox(order.events_address, context=context)
    try:
        engine = build_engine(
            config=order.config, source=order.source(), inbox=inbox, outbox=outbox, stages=stages, on_lost=leave
        )
        gc.freeze()
        gc.enable()
        outbox.send([engine.ready(name=order.name, stages=stages.finished())])
        try:
            engine.loop.run()
        finally:
            engine.close()
    except PhloemError as error:
        outbox.send([wire.Dead(code=error.code, message=error.message, field=error.field)])
        return EXIT_CALLER if isinstance(error, CallerError) else EXIT_ENGINE
    except MemoryError as error:
        message = f"too little memory: {error}; lower --max-running, --max-model-len or --max-step-tokens"
        outbox.send([wire.Dead(code=ConfigError.code, message=message)])
        return EXIT_CALLER
    finally:
        inbox.close()
        outbox.close()
        context.term()
    return 0


def _die_with_server(stdin: int) -> None:
    while os.read(stdin, 1):  # nothing more is ever written: this waits for the end
        pass
    os._exit(EXIT_ENGINE)  # the main thread may be inside a long kernel: nothing here is worth waiting for


if __name__ == "__main__":
    sys.exit(main())
