"""The options of `phloem router`. Apart from it, so that the command line knows them without what they are about."""

from __future__ import annotations

import argparse
from typing import get_args

from phloem.parallel.replicas import RoutingPolicyName


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `phloem router`."""
    policies = get_args(RoutingPolicyName)
    parser.add_argument(
        "--replica",
        action="append",
        default=[],
        metavar="URL",
        help="http://HOST:PORT of a replica; may be given again, and others added at run time",
    )
    parser.add_argument(
        "--policy",
        default=policies[0],
        metavar="|".join(policies),
        help=f"where a request goes (default {policies[0]})",
    )
    parser.add_argument(
        "--model",
        help="the replicas' model, for its tokenizer: prompts are then named by their tokens, "
        "as in the replicas' caches; without it by their text",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="TEXT", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="port; 0: any free one (default 8080)")
    parser.add_argument("--api-key", metavar="TEXT", help="the replicas' key, for the router's own questions")
    parser.add_argument("--admin-key", metavar="TEXT", help="key of /replicas; without it, for this machine only")
    parser.add_argument(
        "--max-queue",
        type=int,
        default=4096,
        metavar="N",
        help="requests open at once before it answers 503 (default 4096)",
    )
    parser.add_argument("--max-body-mb", type=float, default=8.0, metavar="X", help="largest body in MB (default 8)")
    parser.add_argument(
        "--drain-timeout-s",
        type=float,
        default=10.0,
        metavar="X",
        help="seconds that open requests get at shutdown (default 10)",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
