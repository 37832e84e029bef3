"""`viva export`: a bank as Markdown, one HTML file, an Anki package or JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from viva.bank.load import load_bank
from viva.errors import BankError
from viva.render.export import export, select
from viva.render.page import FORMATS

DESCRIPTION = """\
Write a bank in another form.

  viva export banks/sglang-0.5.23 --format html      one file that works offline: sglang-0.5.23.html
  viva export banks/sglang-0.5.23 --format anki      an Anki package: sglang-0.5.23.apkg
  viva export BANK --format json --output -          to standard output
  viva export BANK --format md --only ID --level 5   a selection"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="a bank's folder")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--only", metavar="ID", action="append", default=[], help="this question; may be repeated")
    parser.add_argument("--level", type=int, choices=(2, 3, 4, 5), action="append", help="this level; may be repeated")
    parser.add_argument("--output", type=Path, metavar="FILE", help="another file; - for standard output")


def run(arguments: argparse.Namespace) -> int:
    bank = load_bank(arguments.bank)
    chosen = select(bank, arguments.only)
    chosen = [question for question in chosen if not arguments.level or question.level in arguments.level]
    if not chosen:
        raise BankError(f"{arguments.bank}: no question is selected", field="--level" if arguments.level else "bank")
    made = export(bank, chosen, arguments.format)
    target: Path = arguments.output or Path(made.name)
    if str(target) == "-":
        sys.stdout.buffer.write(made.data)
        return 0
    try:
        target.write_bytes(made.data)
    except OSError as error:
        raise BankError(f"{target}: cannot be written: {error.strerror}", field="--output") from error
    print(f"{target}: {len(chosen)} questions, {len(made.data):,} bytes")
    return 0
