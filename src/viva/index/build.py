"""Making an index of a corpus: files whose hash is known are kept, the others are read on all processors."""

from __future__ import annotations

import gc
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import msgspec

from viva.bank.schema import Source
from viva.index.corpus import Corpus, Folder, Wheel, open_corpus
from viva.index.extract import extract
from viva.index.facts import FileFacts
from viva.index.store import FORMAT, Store, writing

FILES_A_TASK = 64
MIN_FILES_FOR_PROCESSES = 200

Progress = Callable[[int, int], None]  # files done, files to do


class Indexed(msgspec.Struct, frozen=True):
    """What building an index did. `num_kept` files were known by their hash."""

    path: Path
    num_files: int
    num_kept: int
    num_read: int
    num_removed: int


def index_path(name: str, *, cache: Path) -> Path:
    """The index of a corpus: by its name, and for a folder by where it is."""
    readable = re.sub(r"[^\w.=-]+", "_", name).strip("_")[-60:]
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:8]
    return cache / "index" / f"{readable}-{digest}-v{FORMAT}.sqlite"


def build_index(corpus: Corpus, *, cache: Path, progress: Progress | None = None) -> Indexed:
    """Index a corpus, or renew its index. A wheel that is indexed already is not read again."""
    name = str(corpus.root) if isinstance(corpus, Folder) else corpus.name
    path = index_path(name, cache=cache)
    stamp = _stamp(corpus)
    with writing(path) as writer:
        if stamp and writer.meta().get("stamp") == stamp:
            return Indexed(path, len(corpus.paths()), len(corpus.paths()), 0, 0)
        known = writer.known()
        paths = corpus.paths()
        removed = sorted(set(known) - set(paths))
        changed = [path for path in paths if known.get(path) != hashlib.sha256(corpus.read(path)).hexdigest()]
        writer.forget([*removed, *(path for path in changed if path in known)])
        for done, facts in enumerate(_extracted(corpus, changed), start=1):
            writer.add(facts)
            if progress is not None:
                progress(done, len(changed))
        writer.make_indexes()
        writer.set_meta(name=corpus.name, stamp=stamp)
    return Indexed(path, len(paths), len(paths) - len(changed), len(changed), len(removed))


def _stamp(corpus: Corpus) -> str:
    """What a wheel is known by; nothing for a folder, whose files are always looked at."""
    if not isinstance(corpus, Wheel):
        return ""
    status = corpus.file.stat()
    return f"{corpus.file.name} {status.st_size} {status.st_mtime_ns}"


def _extracted(corpus: Corpus, paths: Sequence[str]) -> Iterator[FileFacts]:
    if len(paths) < MIN_FILES_FOR_PROCESSES or not isinstance(corpus, Wheel | Folder):
        yield from (extract(path, corpus.read(path)) for path in paths)
        return
    tasks = [paths[start : start + FILES_A_TASK] for start in range(0, len(paths), FILES_A_TASK)]
    where = corpus.file if isinstance(corpus, Wheel) else corpus.root
    with ProcessPoolExecutor(os.cpu_count() or 1, get_context("spawn"), _start, (where,)) as pool:
        for encoded in pool.map(_read_files, tasks):
            yield from msgspec.msgpack.decode(encoded, type=list[FileFacts])


class _Reading:
    """What a worker process reads from; set once when it starts."""

    corpus: Corpus


def _start(where: Path) -> None:
    _Reading.corpus = Wheel(where) if where.is_file() else Folder(where)
    gc.disable()  # syntax trees hold no cycles; collecting them costs half of the time


def _read_files(paths: Sequence[str]) -> bytes:
    return msgspec.msgpack.encode([extract(path, _Reading.corpus.read(path)) for path in paths])


class Build(Protocol):
    """`build_index`, or something around it that shows how far it is."""

    def __call__(self, corpus: Corpus, *, cache: Path) -> Indexed: ...


def open_source(source: Source, *, bank_folder: Path, cache: Path, build: Build = build_index) -> Store:
    """The index of a bank's source, made or renewed first."""
    return Store(build(open_corpus(source, bank_folder=bank_folder, cache=cache), cache=cache).path)
