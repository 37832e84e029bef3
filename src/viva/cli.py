"""`viva`: one command a use. Each imports what it needs when it runs; only build and practice load a model.

A command's module offers `DESCRIPTION: str`, `add_arguments(parser)` and `run(arguments) -> int` (the exit code).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Collection, Sequence

from phloem import PhloemError

EXIT_OK, EXIT_CALLER, EXIT_INTERRUPTED = 0, 2, 130

COMMANDS = {
    "index": ("viva.index.command", "read a package's source into an index"),
    "facts": ("viva.evidence.command", "what is worth asking about a source"),
    "show": ("viva.index.show", "a symbol: definition, fields, callers, callees"),
    "build": ("viva.compose.command", "compose a bank with a model"),
    "cite": ("viva.verify.cite_command", "fill quote and sha256 of a bank's citations"),
    "verify": ("viva.verify.command", "check every claim of a bank against its sources"),
    "drift": ("viva.verify.drift_command", "what of a bank another version makes stale"),
    "render": ("viva.render.command", "write a bank as Markdown"),
    "export": ("viva.render.export_command", "write a bank as Markdown, HTML, Anki or JSON"),
    "serve": ("viva.web.command", "read a bank in the browser"),
    "practice": ("viva.practice.command", "be asked and graded"),
}


def parser(names: Collection[str]) -> argparse.ArgumentParser:
    """The command line, with the arguments of the commands in `names`: theirs are the modules that are imported."""
    top = argparse.ArgumentParser(prog="viva", description="Interview question banks, checked against pinned sources.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (home, line) in COMMANDS.items():
        below = commands.add_parser(name, help=line, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in names:
            module = importlib.import_module(home)
            below.description = module.DESCRIPTION
            module.add_arguments(below)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 well, 1 a bank has faults, 2 something that the caller can repair."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(words[:1]).parse_args(words)
    try:
        return int(importlib.import_module(COMMANDS[arguments.command][0]).run(arguments))
    except PhloemError as error:
        print(f"viva: {error.message}", file=sys.stderr)
        return EXIT_CALLER
    except BrokenPipeError:  # the reader of our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
