"""A corpus is the files of one pinned source: a wheel's, or a folder's. Reading is all that is done with them."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from viva.bank.schema import Source
from viva.errors import LookupFailed, SourceError

MAX_TEXT_BYTES = 4 << 20  # a larger file is data, not source
BINARY_SUFFIXES = frozenset({".so", ".pyd", ".dll", ".a", ".o", ".png", ".jpg", ".gif", ".ico", ".gz", ".zip", ".pyc"})
HIDDEN_FOLDERS = frozenset({"__pycache__", "node_modules", "build", "dist"})
LINE_END = re.compile(r"\r\n|\r|\n")


class Corpus(Protocol):
    """`name` is what a report calls it: `sglang==0.5.23`, or a folder."""

    @property
    def name(self) -> str: ...

    def paths(self) -> Sequence[str]:
        """Sorted, with forward slashes, relative to the root."""

    def read(self, path: str) -> bytes:
        """The file; LookupFailed if there is none of that path."""


class Wheel:
    """A .whl file, read in place."""

    def __init__(self, file: Path, *, name: str | None = None) -> None:
        self.file = file
        self._name = name or "==".join(file.name.split("-")[:2])
        try:
            self._zip = zipfile.ZipFile(file)
        except (OSError, zipfile.BadZipFile) as error:
            raise SourceError(
                f"{file}: no readable wheel: {error}; delete it and try again", field=str(file)
            ) from error
        names = [info.filename for info in self._zip.infolist() if _is_text(info.filename, info.file_size)]
        self._paths = tuple(sorted(name for name in names if not name.endswith(".dist-info/RECORD")))
        if not any(path.endswith(".py") for path in self._paths):
            raise SourceError(f"{file}: this wheel holds no Python source; give another, or a folder", field=str(file))

    @property
    def name(self) -> str:
        return self._name

    def paths(self) -> Sequence[str]:
        return self._paths

    def read(self, path: str) -> bytes:
        try:
            return self._zip.read(path)
        except KeyError:
            raise LookupFailed(f"{self.name} has no file {path!r}", field=path) from None


class Folder:
    """A folder of source; hidden and generated folders are left out."""

    def __init__(self, root: Path, *, name: str | None = None) -> None:
        self.root = root
        self._name = name or str(root)
        if not root.is_dir():
            raise SourceError(f"{root}: no such folder", field=str(root))
        files = (path for path in root.rglob("*") if path.is_file())
        found = (path.relative_to(root) for path in files if _is_text(path.name, path.stat().st_size))
        self._paths = tuple(sorted(path.as_posix() for path in found if not _is_hidden(path)))
        if not any(path.endswith(".py") for path in self._paths):
            raise SourceError(f"{root}: no Python source in this folder", field=str(root))

    @property
    def name(self) -> str:
        return self._name

    def paths(self) -> Sequence[str]:
        return self._paths

    def read(self, path: str) -> bytes:
        if path not in self._paths:
            raise LookupFailed(f"{self.name} has no file {path!r}", field=path)
        return (self.root / path).read_bytes()


def _is_text(name: str, num_bytes: int) -> bool:
    return not name.endswith("/") and Path(name).suffix not in BINARY_SUFFIXES and num_bytes <= MAX_TEXT_BYTES


def _is_hidden(path: Path) -> bool:
    return any(part in HIDDEN_FOLDERS or part.startswith(".") or part.endswith(".egg-info") for part in path.parts[:-1])


def source_lines(data: bytes, *, name: str) -> list[str]:
    """The lines of a text file, as editors and `ast` count them."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LookupFailed(f"{name}: no UTF-8 text, so it cannot be quoted: {error}", field=name) from error
    lines = LINE_END.split(text)
    return lines[:-1] if lines and not lines[-1] else lines


def open_corpus(source: Source, *, bank_folder: Path, cache: Path) -> Corpus:
    """The corpus of a bank's source; a wheel that is not in the cache is downloaded."""
    if source.tree is not None:
        return Folder((bank_folder / source.tree).resolve(), name=source.tree)
    if source.package is None or source.version is None:
        raise SourceError(f"source {source.id!r} is a repository: its files are not fetched", field=source.id)
    return Wheel(find_wheel(source.package, source.version, cache=cache), name=f"{source.package}=={source.version}")


def find_wheel(package: str, version: str, *, cache: Path) -> Path:
    """The wheel in the cache, after `pip download --no-deps` if it is not there. Nothing of it is run."""
    folder = cache / "wheels"
    stem = re.sub(r"[-_.]+", "[-_.]", re.escape(package).replace(r"\-", "-").replace(r"\.", "."))
    pattern = re.compile(rf"{stem}-{re.escape(version)}(\+[\w.]+)?-.*\.whl", re.IGNORECASE)
    found = _matching(folder, pattern)
    if found is None:
        _download(f"{package}=={version}", folder)
        found = _matching(folder, pattern)
    if found is None:
        raise SourceError(f"pip downloaded no wheel of {package}=={version} into {folder}", field=package)
    return found


def _matching(folder: Path, pattern: re.Pattern[str]) -> Path | None:
    return next((path for path in sorted(folder.glob("*.whl")) if pattern.fullmatch(path.name)), None)


def _download(requirement: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]  # a source archive would run its setup.py
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise SourceError(
            f"pip cannot download {requirement}: {reason[-1] if reason else 'no reason given'}; "
            f"put the wheel into {folder}, or give a folder with the source",
            field=requirement,
        )
