"""`viva index`: read a source into an index."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from viva.errors import SourceError
from viva.index.corpus import Corpus, Folder, Wheel, find_wheel
from viva.index.progress import build_with_bar
from viva.index.store import Store
from viva.place import cache_folder

DESCRIPTION = """\
Read a source into an index: symbols, signatures, fields, calls, line ranges, hashes. Nothing of it is run.

  viva index sglang==0.5.23        a package; its wheel is fetched with pip if it is not in the cache
  viva index ./x-1.0-py3-none-any.whl
  viva index src                   a folder; files that did not change are not read again"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="SOURCE", help="PACKAGE==VERSION, a wheel or a folder")


def named_corpus(what: str, *, cache: Path) -> Corpus:
    """The corpus that a command line names: PACKAGE==VERSION, a wheel, or a folder."""
    package, pinned, version = what.partition("==")
    if pinned:
        if not package or not version:
            raise SourceError(f"{what!r} is no PACKAGE==VERSION", field="SOURCE")
        return Wheel(find_wheel(package, version, cache=cache), name=f"{package}=={version}")
    path = Path(what)
    if path.is_file():
        return Wheel(path)
    if path.is_dir():
        return Folder(path.resolve())
    raise SourceError(f"{what!r} is no PACKAGE==VERSION, no wheel and no folder", field="SOURCE")


def named_store(what: str, *, cache: Path) -> Store:
    """The index of what a command line names, made or renewed, with a progress bar where that takes long."""
    return Store(build_with_bar(named_corpus(what, cache=cache), cache=cache).path)


def run(arguments: argparse.Namespace) -> int:
    cache = cache_folder()
    start = time.perf_counter()
    corpus = named_corpus(arguments.what, cache=cache)
    done = build_with_bar(corpus, cache=cache)
    store = Store(done.path)
    counts = store.counts()
    print(
        f"{corpus.name}: {done.num_files} files ({done.num_read} read, {done.num_kept} known, {done.num_removed} gone) "
        f"in {time.perf_counter() - start:.1f} s; {counts['symbols']} symbols, {counts['fields']} fields, "
        f"{counts['calls']} calls, {counts['imports']} imports"
    )
    for path, fault in store.faults().items():
        print(f"  not read: {path}: {fault}")
    print(f"index: {done.path}")
    return 0
