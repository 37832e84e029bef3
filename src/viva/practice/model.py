"""Which grader: a program on an endpoint or on a local model, or matching where there is neither."""

from __future__ import annotations

import argparse
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from phloem import RunOptions
from viva.bank.load import Bank
from viva.errors import VivaError
from viva.place import api_key
from viva.practice.grading import Grader
from viva.practice.match import Matcher
from viva.practice.program import ProgramGrader

EMBEDDED = ("default", "SmolLM2-135M")
TIMEOUT_S = 90.0
LOOK_UP_TIMEOUT_S = 10.0


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--endpoint", metavar="URL", help="grade with this OpenAI-compatible server: http://HOST:PORT/v1"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="the endpoint's model (its first, if not given); without --endpoint a local one"
    )
    parser.add_argument("--timeout", type=float, metavar="S", default=TIMEOUT_S, help="how long grading may take")


@contextmanager
def chosen_grader(arguments: argparse.Namespace, bank: Bank) -> Iterator[Grader]:
    """The grader that the options ask for; a local model lives until the block ends."""
    timeout_s: float = arguments.timeout
    if timeout_s <= 0:
        raise VivaError(f"--timeout {timeout_s:g}: give more than 0 seconds", field="--timeout")
    if arguments.endpoint:
        yield _endpoint_grader(bank, arguments.endpoint, arguments.model, timeout_s=timeout_s)
    elif arguments.model is None or any(name in arguments.model for name in EMBEDDED):
        yield Matcher(bank)
    else:
        from phloem import LLM  # loads torch

        with LLM(arguments.model) as llm:
            yield ProgramGrader(bank, llm.run, name=arguments.model, timeout_s=timeout_s)


def _endpoint_grader(bank: Bank, url: str, model: str | None, *, timeout_s: float) -> ProgramGrader:
    from phloem import EndpointEngine, run_on

    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise VivaError(f"--endpoint {url}: give a URL such as http://127.0.0.1:8000/v1", field="--endpoint")
    key = api_key() or "unused"
    name = model or _first_model(url, key)
    engine = EndpointEngine(url, model=name, api_key=key, extensions=False)

    def run(program: Any, /, options: RunOptions, **given: Any) -> Any:
        return run_on(engine, program, options, **given)

    return ProgramGrader(bank, run, name=name, timeout_s=timeout_s)


def _first_model(url: str, key: str) -> str:
    """The first model that the endpoint lists."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=LOOK_UP_TIMEOUT_S)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/models", headers={"authorization": f"Bearer {key}"})
        listed = json.loads(connection.getresponse().read())
        return str(listed["data"][0]["id"])
    except (OSError, http.client.HTTPException) as error:
        raise VivaError(f"--endpoint {url}: no answer: {error}", field="--endpoint") from error
    except (ValueError, LookupError, TypeError) as error:
        raise VivaError(f"--endpoint {url}: it lists no models; give --model NAME", field="--endpoint") from error
    finally:
        connection.close()
