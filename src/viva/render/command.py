"""`viva render`: a bank's Markdown, next to its data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from viva.bank.load import load_bank
from viva.errors import BankError
from viva.render.markdown import bank_markdown

DESCRIPTION = """\
Write a bank as Markdown.

  viva render banks/sglang-0.5.23                  writes bank.zh.md into the folder
  viva render banks/sglang-0.5.23 --output -       to standard output
  viva render banks/sglang-0.5.23 --check          exit code 1 if bank.zh.md is not what would be written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="a bank's folder")
    parser.add_argument("--output", type=Path, metavar="FILE", help="another file; - for standard output")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")


def run(arguments: argparse.Namespace) -> int:
    bank = load_bank(arguments.bank)
    text = bank_markdown(bank)
    target: Path = arguments.output or arguments.bank / f"bank.{bank.file.language}.md"
    if str(target) == "-":
        sys.stdout.write(text)
        return 0
    if arguments.check:
        fresh = target.is_file() and target.read_text(encoding="utf-8") == text
        print(f"{target}: {'up to date' if fresh else 'stale; run `viva render` again'}")
        return 0 if fresh else 1
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BankError(f"{target}: cannot be written: {error.strerror}", field="--output") from error
    print(f"{target}: {len(bank.questions)} questions")
    return 0
