"""`viva verify`: check every claim of a bank; exit code 1 where one does not hold."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from viva.bank.load import load_bank
from viva.errors import BankError
from viva.index.progress import build_with_bar
from viva.place import cache_folder
from viva.verify.report import lines_of
from viva.verify.verify import Verifier, open_sources

DESCRIPTION = """\
Check every claim of a bank against its pinned sources. Sources are fetched and indexed on first use.

  viva verify banks/sglang-0.5.23
  viva verify banks/sglang-0.5.23 --only event-loop      one question by its id
  viva verify banks/sglang-0.5.23 --json report.json

exit codes: 0 everything holds, 1 something does not, 2 the bank or a source cannot be read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="a bank's folder")
    parser.add_argument("--only", metavar="ID", action="append", help="check this question alone; may be repeated")
    parser.add_argument(
        "--skip", metavar="SOURCE", action="append", default=[], help="do not fetch this source of comparisons"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON too; - for standard output")


def run(arguments: argparse.Namespace) -> int:
    bank = load_bank(arguments.bank)
    unknown = sorted(set(arguments.skip) - {source.id for source in bank.file.sources if source.role == "comparison"})
    if unknown:
        raise BankError(f"{arguments.bank} compares with no source {', '.join(unknown)}", field="--skip")
    sources = open_sources(bank, cache=cache_folder(), build=build_with_bar, skip=arguments.skip)
    verifier = Verifier(bank, sources)
    report = verifier.bank()
    if arguments.only:
        unknown = sorted(set(arguments.only) - {question.id for question in bank.questions})
        if unknown:
            raise BankError(f"{arguments.bank} has no question {', '.join(unknown)}", field="--only")
        report.questions = [question for question in report.questions if question.id in arguments.only]
        report.faults = []
    if arguments.json:
        data = msgspec.json.format(msgspec.json.encode(report), indent=1)
        if str(arguments.json) == "-":
            sys.stdout.write(data.decode() + "\n")
        else:
            arguments.json.write_bytes(data + b"\n")
    if str(arguments.json) != "-":
        print("\n".join(lines_of(report)))
    return 1 if report.all_faults else 0
