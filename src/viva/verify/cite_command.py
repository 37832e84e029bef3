"""`viva cite`: fill quote and sha256 from file and lines."""

from __future__ import annotations

import argparse
from pathlib import Path

from viva.bank.cite import fill_citations
from viva.bank.load import load_sources
from viva.bank.schema import Citation, Source
from viva.errors import BankError
from viva.index.corpus import Corpus, open_corpus, source_lines
from viva.place import cache_folder

DESCRIPTION = """\
Fill `quote` and `sha256` of each citation from its `file` and `lines`. Only the citations block is rewritten.

  viva cite banks/sglang-0.5.23                              every question of the bank
  viva cite banks/sglang-0.5.23/questions/03-radix.yaml      one question
  viva cite --move FILE                                      also those that have a quote: their lines were changed
  viva cite --follow banks/phloem                            new lines where a quote has moved within its file"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("where", type=Path, help="a bank's folder, or one question's file")
    parser.add_argument("--move", action="store_true", help="quote again what has a quote already")
    parser.add_argument("--follow", action="store_true", help="find quotes that moved, and correct their lines")


def run(arguments: argparse.Namespace) -> int:
    where: Path = arguments.where
    folder = where if where.is_dir() else where.parent.parent
    files = sorted((where / "questions").glob("*.yaml")) if where.is_dir() else [where]
    sources = load_sources(folder)
    lines = _LinesOfSources(folder, sources)
    fetched = [source.id for source in sources.values() if not source.repository]
    follow = fetched if arguments.follow else ()
    for file in files:
        print(f"{file}: {fill_citations(file, lines, move=arguments.move, follow=follow)} filled")
    return 0


class _LinesOfSources:
    """All lines of a cited file; each source is opened once."""

    def __init__(self, folder: Path, sources: dict[str, Source]) -> None:
        self._folder, self._sources = folder, sources
        self._corpora: dict[str, Corpus] = {}

    def __call__(self, citation: Citation) -> list[str]:
        source = self._sources.get(citation.source)
        if source is None:
            raise BankError(f"{citation.id}: no source {citation.source!r} in bank.yaml", field="source")
        if source.id not in self._corpora:
            self._corpora[source.id] = open_corpus(source, bank_folder=self._folder, cache=cache_folder())
        return source_lines(self._corpora[source.id].read(citation.file), name=citation.file)
