"""`viva facts`: what is worth asking about a source."""

from __future__ import annotations

import argparse
import sys

import msgspec

from viva.evidence.mine import TOPICS, mine
from viva.index.command import named_store
from viva.index.resolve import Resolver
from viva.place import cache_folder

DESCRIPTION = """\
List facts of a source from which questions can be derived, each with the lines to cite.

  chain      a call chain across files          structure  a class with its fields (and owners, with --about)
  invariant  an assert between several things   constant   a number or formula
  failure    a raise, or what a handler does    option     an environment variable or flag

  viva facts sglang==0.5.23 --topic invariant --in sglang/srt/mem_cache
  viva facts sglang==0.5.23 --topic structure --about TreeNode
  viva facts sglang==0.5.23 --topic chain --about event_loop --limit 5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="SOURCE", help="PACKAGE==VERSION, a wheel or a folder")
    parser.add_argument("--topic", choices=TOPICS, action="append", help="may be repeated; all without it")
    parser.add_argument(
        "--in", dest="within", metavar="PATH", action="append", default=[], help="only files whose path begins so"
    )
    parser.add_argument("--about", default="", metavar="WORD", help="only facts that name it")
    parser.add_argument("--limit", type=int, default=20, help="facts a topic (default 20)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    resolver = Resolver(named_store(arguments.what, cache=cache_folder()))
    for topic in arguments.topic or TOPICS:
        facts = mine(resolver, topic, within=arguments.within, about=arguments.about, limit=arguments.limit)
        for fact in facts:
            if arguments.json:
                sys.stdout.write(msgspec.json.encode(fact).decode() + "\n")
                continue
            print(f"[{fact.topic}] {fact.title}")
            print(
                "".join(f"    {line}\n" for line in fact.detail) + "".join(f"    cite {span}\n" for span in fact.spans),
                end="",
            )
        if not facts and not arguments.json:
            print(f"[{topic}] nothing found")
    return 0
