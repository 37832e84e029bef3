"""The fixture of viva's tests: a small source, another to compare with, and a bank with one question on them."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from viva.bank.load import Bank, load_bank
from viva.bank.schema import Question
from viva.index.build import build_index
from viva.index.corpus import Folder
from viva.index.resolve import Resolver
from viva.index.store import Store
from viva.verify.report import Fault
from viva.verify.verify import Verifier, open_sources

DATA = Path(__file__).parent / "data"
CACHE = Path(mkdtemp(prefix="viva-tests-"))


@cache
def bank() -> Bank:
    return load_bank(DATA / "bank")


@cache
def resolvers() -> dict[str, Resolver]:
    return open_sources(bank(), cache=CACHE)


@cache
def question() -> Question:
    return bank().questions[0]


def faults(changed: Question) -> list[Fault]:
    """What verification says about one question alone."""
    return Verifier(bank(), resolvers()).question(changed).faults


def indexed(folder: Path, cache_folder: Path) -> Store:
    return Store(build_index(Folder(folder), cache=cache_folder).path)


def copied(target: Path) -> Path:
    """A copy of all fixture data, to be changed."""
    return Path(shutil.copytree(DATA, target / "data"))
