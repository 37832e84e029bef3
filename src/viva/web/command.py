"""`viva serve`: a bank's page on this machine."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

import uvicorn

from viva.bank.load import Bank, load_bank
from viva.errors import BankError, SourceError, VivaError
from viva.index.build import open_source
from viva.index.progress import build_with_bar
from viva.index.store import Store
from viva.place import cache_folder
from viva.practice.command import new_folder
from viva.practice.model import add_model_arguments, chosen_grader
from viva.practice.session import Session
from viva.web.app import make_app
from viva.web.sources import SourcePages

DESCRIPTION = """\
Read a bank in the browser: browse, search, hide and reveal, follow citations into the source, practise, export.

  viva serve banks/sglang-0.5.23                     http://127.0.0.1:8765
  viva serve BANK --no-sources                       quotes only: no wheel is fetched or indexed
  viva serve BANK --endpoint http://HOST:PORT/v1     practice is graded by a model there"""

LOCAL = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="a bank's folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one")
    parser.add_argument(
        "--no-sources", action="store_true", help="do not open the sources: citations show their quotes"
    )
    parser.add_argument("--session", type=Path, metavar="FOLDER", help="where session.json and report.md go")
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    bank = load_bank(arguments.bank)
    if not bank.questions:
        raise BankError(f"{arguments.bank}: the bank has no questions yet", field="bank")
    listening = _listen(arguments.host, arguments.port)
    stores = {} if arguments.no_sources else open_stores(bank)
    with chosen_grader(arguments, bank) as grader:
        session = Session(bank, grader, folder=arguments.session or new_folder(bank))
        hosts = frozenset() if arguments.host in EVERYWHERE else frozenset({*LOCAL, arguments.host})
        app = make_app(bank, SourcePages(bank, stores), session, hosts=hosts)
        address = listening.getsockname()
        print(f"viva: {bank.file.title}: http://{arguments.host}:{address[1]}  (Ctrl-C ends)", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        server.run(sockets=[listening])
    return 0


def open_stores(bank: Bank) -> dict[str, Store]:
    """The indexes of the bank's sources. One that cannot be had is named and left out: its quotes are in the bank."""
    stores = {}
    for source in bank.file.sources:
        if source.repository:
            continue
        try:
            stores[source.id] = open_source(source, bank_folder=bank.folder, cache=cache_folder(), build=build_with_bar)
        except SourceError as error:
            print(f"viva: {error.message}; its citations show their quotes alone", file=sys.stderr)
    return stores


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise VivaError(f"{host}:{port}: cannot listen there: {error}; give another --port", field="--port") from error
    return listening
