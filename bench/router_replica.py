"""A replica of `bench router`: everything but the model, whose time is charged by the tokens that a step computes."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import threading
import time

import uvicorn
import zmq

from bench.router import PAGE_SIZE, STEP_S, TOKEN_S
from phloem.core.clock import MonotonicClock
from phloem.core.plan import StepPlan
from phloem.core.wire import Ready
from phloem.launch.constraints import ConstraintTrials
from phloem.launch.models import ModelLocation
from phloem.launch.text import BYTE_VOCAB_SIZE, NUM_PRINTABLE, load_text_of
from phloem.runtime.loop import Loop
from phloem.runtime.mailbox import ZmqInbox, ZmqOutbox
from phloem.runtime.null import NullHandle, NullWorker, hash_chooser
from phloem.runtime.sched.build import SchedulerSettings, make_scheduler
from phloem.serve.client import ZmqEngineClient
from phloem.serve.http.admission import Admission
from phloem.serve.http.app import Limits, create_app
from phloem.serve.observe.metrics import Metrics
from phloem.serve.text.formats.choose import choose_formats

MODEL, CONTEXT, MAX_ROWS = "dummy:null", 4096, 32


class CostedWorker(NullWorker):
    """A step takes STEP_S and TOKEN_S for each token that it computes."""

    def submit(self, plan: StepPlan) -> NullHandle:
        """Apply a plan."""
        started_s, handle = time.monotonic(), super().submit(plan)
        return NullHandle(handle.wait(), ready_s=started_s + STEP_S + TOKEN_S * sum(plan.num_tokens))


def run_engine(commands: str, events: str, num_pages: int) -> None:
    """The engine's half, on a thread."""
    settings = SchedulerSettings(
        num_pages=num_pages, page_size=PAGE_SIZE, max_rows=MAX_ROWS, max_step_tokens=1024, max_model_len=CONTEXT,
        policy="lpm",
    )  # fmt: skip
    scheduler = make_scheduler(settings)
    worker = CostedWorker(
        num_pages=num_pages, page_size=PAGE_SIZE, max_rows=MAX_ROWS, choose=hash_chooser(vocab_size=NUM_PRINTABLE),
        verify=False,
    )  # fmt: skip
    context = zmq.Context[zmq.Socket[bytes]]()
    outbox = ZmqOutbox(events, context=context)
    outbox.send([Ready(MODEL, CONTEXT, scheduler.max_prompt_len, BYTE_VOCAB_SIZE)])
    inbox = ZmqInbox(commands, context=context)
    Loop(scheduler=scheduler, worker=worker, inbox=inbox, outbox=outbox, clock=MonotonicClock()).run()


async def serve(listener: socket.socket, num_pages: int) -> None:
    """The server's half."""
    with tempfile.TemporaryDirectory() as folder:
        commands, events = f"ipc://{folder}/commands", f"ipc://{folder}/events"
        client = ZmqEngineClient(commands_address=commands, events_address=events)
        await client.start()
        threading.Thread(target=run_engine, args=(commands, events, num_pages), daemon=True).start()
        text = load_text_of(ModelLocation(name=MODEL, kind="dummy"))
        app = create_app(
            client=client,
            tokenizer=text.tokenizer,
            chat_template=text.chat,
            model_name=MODEL,
            limits=Limits(),
            metrics=Metrics(model_name=MODEL),
            clock=MonotonicClock(),
            admission=Admission(max_queue=1024),
            constraints=ConstraintTrials(text.tokenizer),
            formats=choose_formats(text.chat, text.tokenizer, tool_format="auto", reasoning_format="auto"),
        )
        config = uvicorn.Config(app, lifespan="off", access_log=False, log_config=None)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
