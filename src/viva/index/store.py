"""The index of one source in an SQLite file: written by `build`, read by everything else."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from viva.errors import LookupFailed, SourceError
from viva.index.corpus import LINE_END
from viva.index.facts import CallFact, FieldFact, FileFacts, ImportFact, Symbol

FORMAT = 4  # a change of what is extracted or how it is kept makes older files worthless
SEPARATOR = "\x1f"

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, sha256 TEXT NOT NULL, num_bytes INTEGER NOT NULL,
  num_lines INTEGER NOT NULL, fault TEXT NOT NULL, text BLOB NOT NULL, names BLOB NOT NULL, strings BLOB NOT NULL);
CREATE TABLE symbols (file INTEGER NOT NULL, qualname TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
  first INTEGER NOT NULL, line INTEGER NOT NULL, last INTEGER NOT NULL, signature TEXT NOT NULL, bases TEXT NOT NULL,
  decorators TEXT NOT NULL);
CREATE TABLE fields (file INTEGER NOT NULL, owner TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL,
  value TEXT NOT NULL, line INTEGER NOT NULL, how TEXT NOT NULL);
CREATE TABLE calls (file INTEGER NOT NULL, caller TEXT NOT NULL, seq INTEGER NOT NULL, line INTEGER NOT NULL,
  callee TEXT NOT NULL, name TEXT NOT NULL);
CREATE TABLE imports (file INTEGER NOT NULL, scope TEXT NOT NULL, alias TEXT NOT NULL, target TEXT NOT NULL,
  line INTEGER NOT NULL);
"""
INDEXES = """
CREATE INDEX symbols_name ON symbols (name);
CREATE INDEX symbols_file ON symbols (file, qualname);
CREATE INDEX fields_name ON fields (name);
CREATE INDEX fields_owner ON fields (file, owner);
CREATE INDEX calls_name ON calls (name);
CREATE INDEX calls_caller ON calls (file, caller);
CREATE INDEX imports_file ON imports (file);
"""
OF_FILES = ("symbols", "fields", "calls", "imports")


class Store:
    """Reads an index. Every answer is in the order of paths and lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
            self.name = self._meta("name")
            self._file_ids: dict[str, int] = dict(self._db.execute("SELECT path, id FROM files ORDER BY path"))
        except sqlite3.Error as error:
            raise SourceError(
                f"{path}: no readable index: {error}; delete it and index again", field=str(path)
            ) from error
        self._paths = {number: name for name, number in self._file_ids.items()}
        self._strings: frozenset[str] | None = None

    def _meta(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def close(self) -> None:
        self._db.close()

    # --- files ---

    def paths(self) -> list[str]:
        return list(self._file_ids)

    def has_file(self, path: str) -> bool:
        return path in self._file_ids

    def text(self, path: str) -> str:
        """The text of a file; LookupFailed if the source has none of that path."""
        return self._blob(path, "text")

    def lines(self, path: str) -> list[str]:
        lines = LINE_END.split(self.text(path))
        return lines[:-1] if not lines[-1] else lines

    def sha256(self, path: str) -> str:
        row = self._db.execute("SELECT sha256 FROM files WHERE id = ?", (self._file(path),)).fetchone()
        return str(row[0])

    def names(self, path: str) -> frozenset[str]:
        """Every identifier that the file's code uses."""
        return frozenset(self._blob(path, "names").split("\n"))

    def strings(self, path: str) -> frozenset[str]:
        """The one-word string constants of a file: flags, keys, environment variables."""
        return frozenset(self._blob(path, "strings").split("\n"))

    def all_strings(self) -> frozenset[str]:
        if self._strings is None:
            blobs = (row[0] for row in self._db.execute("SELECT strings FROM files WHERE strings != x''"))
            self._strings = frozenset(word for blob in blobs for word in zlib.decompress(blob).decode().split("\n"))
        return self._strings

    def files_with_name(self, names: Iterable[str]) -> dict[str, list[str]]:
        """For each name, the files whose code uses it."""
        wanted = set(names)
        found: dict[str, list[str]] = {name: [] for name in wanted}
        for path, blob in self._db.execute("SELECT path, names FROM files WHERE names != x'' ORDER BY path"):
            for name in wanted.intersection(zlib.decompress(blob).decode().split("\n")):
                found[name].append(path)
        return found

    def faults(self) -> dict[str, str]:
        """The files that could not be read, with the reason."""
        return dict(self._db.execute("SELECT path, fault FROM files WHERE fault != '' ORDER BY path"))

    def counts(self) -> dict[str, int]:
        """Rows of each kind."""
        return {
            table: int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
            for table in ("files", *OF_FILES)
        }

    def _file(self, path: str) -> int:
        if path not in self._file_ids:
            raise LookupFailed(f"{self.name} has no file {path!r}", field=path)
        return self._file_ids[path]

    def _blob(self, path: str, column: str) -> str:
        row = self._db.execute(f"SELECT {column} FROM files WHERE id = ?", (self._file(path),)).fetchone()
        return zlib.decompress(row[0]).decode("utf-8") if row[0] else ""

    # --- symbols ---

    def symbols_named(self, name: str) -> list[Symbol]:
        """Symbols whose last name this is."""
        return self._symbols("name = ?", (name,))

    def symbols_of(self, path: str, qualname: str | None = None) -> list[Symbol]:
        """A file's symbols, or those of one qualified name."""
        if path not in self._file_ids:
            return []
        if qualname is None:
            return self._symbols("file = ?", (self._file_ids[path],))
        return self._symbols("file = ? AND qualname = ?", (self._file_ids[path], qualname))

    def classes(self) -> Iterator[Symbol]:
        return iter(self._symbols("kind = 'class'", ()))

    def _symbols(self, where: str, values: Sequence[str | int]) -> list[Symbol]:
        rows = self._db.execute(
            f"SELECT file, qualname, kind, first, line, last, signature, bases, decorators FROM symbols WHERE {where}",
            values,
        )
        found = [_symbol(self._paths[row[0]], row) for row in rows]
        return sorted(found, key=lambda symbol: (symbol.file, symbol.line))

    # --- fields, calls, imports ---

    def fields_of(self, path: str, owner: str) -> list[FieldFact]:
        return self._fields("file = ? AND owner = ?", (self._file(path), owner))

    def fields_named(self, name: str) -> list[FieldFact]:
        return self._fields("name = ?", (name,))

    def _fields(self, where: str, values: Sequence[str | int]) -> list[FieldFact]:
        rows = self._db.execute(f"SELECT file, owner, name, type, value, line, how FROM fields WHERE {where}", values)
        found = [FieldFact(self._paths[row[0]], *row[1:]) for row in rows]
        return sorted(found, key=lambda field: (field.file, field.line))

    def calls_of(self, path: str, caller: str) -> list[CallFact]:
        """The calls of a function, in order of evaluation."""
        return self._calls("file = ? AND caller = ? ORDER BY seq", (self._file(path), caller))

    def calls_named(self, name: str) -> list[CallFact]:
        """Every call whose last name this is."""
        return self._calls("name = ? ORDER BY file, line", (name,))

    def _calls(self, where: str, values: Sequence[str | int]) -> list[CallFact]:
        rows = self._db.execute(f"SELECT file, caller, seq, line, callee FROM calls WHERE {where}", values)
        return [CallFact(self._paths[row[0]], *row[1:]) for row in rows]

    def imports_of(self, path: str) -> list[ImportFact]:
        rows = self._db.execute(
            "SELECT scope, alias, target, line FROM imports WHERE file = ? ORDER BY line", (self._file(path),)
        )
        return [ImportFact(path, *row) for row in rows]


def _symbol(path: str, row: Sequence[Any]) -> Symbol:
    _, qualname, kind, first, line, last, signature, bases, decorators = row
    return Symbol(path, qualname, kind, first, line, last, signature, _split(bases), _split(decorators))


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(SEPARATOR)) if text else ()


class StoreWriter:
    """Makes or renews an index. Use it in `with writing(path)`: what fails midway changes nothing."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def known(self) -> dict[str, str]:
        """The hash of each file that is in the index."""
        return dict(self._db.execute("SELECT path, sha256 FROM files"))

    def meta(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT key, value FROM meta"))

    def set_meta(self, **values: str) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def forget(self, paths: Iterable[str]) -> None:
        for path in paths:
            row = self._db.execute("SELECT id FROM files WHERE path = ?", (path,)).fetchone()
            if row is not None:
                for table in OF_FILES:
                    self._db.execute(f"DELETE FROM {table} WHERE file = ?", row)
                self._db.execute("DELETE FROM files WHERE id = ?", row)

    def add(self, facts: FileFacts) -> None:
        cursor = self._db.execute(
            f"INSERT INTO files (path, sha256, num_bytes, num_lines, fault, text, names, strings) VALUES ({_marks(8)})",
            (
                facts.path,
                facts.sha256,
                facts.num_bytes,
                facts.num_lines,
                facts.fault,
                facts.text,
                facts.names,
                facts.strings,
            ),
        )
        number = cursor.lastrowid
        symbols = (
            (number, s.qualname, s.name, s.kind, s.begin, s.line, s.end, s.signature, SEPARATOR.join(s.bases),
             SEPARATOR.join(s.decorators))
            for s in facts.symbols
        )  # fmt: skip
        fields = ((number, f.owner, f.name, f.type, f.value, f.line, f.how) for f in facts.fields)
        calls = ((number, c.caller, c.seq, c.line, c.callee, c.callee.rpartition(".")[2]) for c in facts.calls)
        imports = ((number, i.scope, i.alias, i.target, i.line) for i in facts.imports)
        self._db.executemany(f"INSERT INTO symbols VALUES ({_marks(10)})", symbols)
        self._db.executemany(f"INSERT INTO fields VALUES ({_marks(7)})", fields)
        self._db.executemany(f"INSERT INTO calls VALUES ({_marks(6)})", calls)
        self._db.executemany(f"INSERT INTO imports VALUES ({_marks(5)})", imports)

    def make_indexes(self) -> None:
        self._db.executescript(
            "".join(
                f"{line};".replace("CREATE INDEX", "CREATE INDEX IF NOT EXISTS") for line in INDEXES.split(";")[:-1]
            )
        )


def _marks(count: int) -> str:
    return ",".join("?" * count)


@contextmanager
def writing(path: Path) -> Iterator[StoreWriter]:
    """An index opened for change, made if there is none; committed at the end, untouched after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=600)
    try:
        db.execute("PRAGMA synchronous = OFF")
        if not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            db.executescript(TABLES)
        db.execute("BEGIN IMMEDIATE")  # one writer at a time; the next one finds the work done
        yield StoreWriter(db)
        db.commit()
    except sqlite3.DatabaseError as error:
        raise SourceError(f"{path}: no usable index: {error}; delete it and index again", field=str(path)) from error
    finally:
        db.close()
