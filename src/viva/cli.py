"""`viva`: one command a use. Each imports what it needs when it runs; only build and practice load a model.

A command's module offers `DESCRIPTION: str`, `add_arguments(parser)` and `run(arguments) -> int` (the exit code).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from phloem import PhloemError

EXIT_OK, EXIT_FAULTS, EXIT_CALLER, EXIT_INTERRUPTED = 0, 1, 2, 130

COMMANDS = {
    "index": ("viva.index.command", "read a package's source into an index"),
    "facts": ("viva.evidence.command", "what is worth asking about a source"),
    "show": ("viva.index.show", "a symbol: definition, fields, callers, callees"),
    "cite": ("viva.bank.cite_command", "fill quote and sha256 of a bank's citations"),
    "verify": ("viva.verify.command", "check every claim of a bank against its sources"),
    "drift": ("viva.verify.drift_command", "what of a bank another version makes stale"),
    "build": ("viva.compose.command", "compose a bank with a model"),
    "render": ("viva.render.command", "write a bank as Markdown"),
    "export": ("viva.render.export_command", "write a bank as Markdown, HTML, Anki or JSON"),
    "serve": ("viva.web.command", "read a bank in the browser"),
    "practice": ("viva.practice.command", "be asked and graded"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. 0 well, 1 a bank has faults, 2 the caller can repair it."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="viva", description=__doc__.split("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (home, line) in COMMANDS.items():
        below = commands.add_parser(name, help=line)
        if words[:1] == [name]:
            module = importlib.import_module(home)
            below.description = module.DESCRIPTION
            below.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(below)
    arguments = parser.parse_args(words)
    try:
        return int(importlib.import_module(COMMANDS[arguments.command][0]).run(arguments))
    except PhloemError as error:
        print(f"viva: {error.message}", file=sys.stderr)
        return EXIT_CALLER
    except BrokenPipeError:
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
