"""The server's half of `phloem serve`: tokenizer, engine client and HTTP application, made while the engine starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from phloem.core.clock import MonotonicClock
from phloem.core.config import Config
from phloem.lang.functions import Functions
from phloem.launch.constraints import ConstraintTrials
from phloem.launch.models import ModelLocation
from phloem.launch.order import Order
from phloem.launch.text import load_text_of
from phloem.serve.client import ZmqEngineClient
from phloem.serve.http.admission import Admission
from phloem.serve.http.app import Limits, create_app
from phloem.serve.observe.metrics import Metrics
from phloem.serve.programs.service import MAX_PARALLEL, ProgramSettings
from phloem.serve.text.formats.choose import choose_formats

HTTP_STOP_S = 2
"""For answers that are still being written when the server stops."""

BYTES_PER_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Ready to be run in an event loop: start the client, then serve HTTP."""

    client: ZmqEngineClient
    admission: Admission
    http: HttpServer
    can_chat: bool
    constraints: ConstraintTrials


class HttpServer(uvicorn.Server):
    """uvicorn that leaves signals to launch.serve, which drains first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def build_front(*, config: Config, order: Order, location: ModelLocation, functions: Functions) -> Front:
    """Load the tokenizer and assemble the application. ModelError when the model brings no usable tokenizer."""
    text = load_text_of(location, chat_template=config.chat_template)
    clock = MonotonicClock()
    client = ZmqEngineClient(commands_address=order.commands_address, events_address=order.events_address)
    admission = Admission(max_queue=config.max_queue)
    constraints = ConstraintTrials(text.tokenizer)
    app = create_app(
        client=client,
        tokenizer=text.tokenizer,
        chat_template=text.chat,
        model_name=order.name,
        limits=Limits(max_body_bytes=int(config.max_body_mb * BYTES_PER_MB), api_key=config.api_key),
        metrics=Metrics(model_name=order.name),
        clock=clock,
        admission=admission,
        constraints=constraints,
        programs=ProgramSettings(
            functions=functions,
            max_parallel=config.max_running or MAX_PARALLEL,
            tokens_per_page=config.page_size,
        ),
        formats=choose_formats(
            text.chat, text.tokenizer, tool_format=config.tool_format, reasoning_format=config.reasoning_format
        ),
    )
    http = HttpServer(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=HTTP_STOP_S,
        )
    )
    return Front(client=client, admission=admission, http=http, can_chat=text.chat.available, constraints=constraints)
