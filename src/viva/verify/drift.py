"""What another version of a source makes of a bank: citations that moved, changed or vanished, claims that broke, and
the sentences that rest on them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from viva.bank.cite import find_lines, quote_hash
from viva.bank.load import Bank
from viva.bank.schema import Citation, Question
from viva.index.facts import MODULE, Symbol
from viva.index.resolve import Resolver
from viva.index.store import Store
from viva.verify.claims import passages
from viva.verify.prose import markers, sentences
from viva.verify.verify import Verifier

MAX_DIFF_LINES = 40

Fate = Literal["same", "moved", "changed", "vanished"]


class Drifted(msgspec.Struct, frozen=True):
    """One citation. `file` and `lines` are where it stands, or what has taken its place, in the other version; `diff`
    has the lines that differ."""

    citation: Citation
    fate: Fate
    file: str = ""
    lines: tuple[int, int] = (0, 0)
    diff: tuple[str, ...] = ()

    @property
    def is_stale(self) -> bool:
        return self.fate in ("changed", "vanished")


class QuestionDrift(msgspec.Struct, frozen=True):
    """One question. `broken` are the claims on names, calls, fields and signatures that no longer hold; `stale` the
    sentences, with their section, that rest on a citation that changed or vanished."""

    id: str
    citations: tuple[Drifted, ...]
    broken: tuple[str, ...]
    stale: tuple[tuple[str, str], ...]

    @property
    def is_stale(self) -> bool:
        return bool(self.broken or self.stale or any(item.is_stale for item in self.citations))


def drift(bank: Bank, source: str, *, pinned: Mapping[str, Resolver], other: Resolver) -> list[QuestionDrift]:
    """Each question against another version of one of its sources."""
    verifier = Verifier(bank, {**pinned, source: other})
    old = pinned[source]
    return [_question(question, source, old, other, verifier) for question in bank.questions]


def _question(question: Question, source: str, old: Resolver, other: Resolver, verifier: Verifier) -> QuestionDrift:
    cited = [citation for citation in question.citations if citation.source == source]
    drifted = tuple(locate(citation, old, other) for citation in cited)
    moved = {item.citation.id: item for item in drifted if item.file}
    aimed = tuple(_aimed(citation, moved.get(citation.id), other.store) for citation in question.citations)
    report = verifier.question(msgspec.structs.replace(question, citations=aimed))
    broken = tuple(f"{fault.section}: {fault.message}" for fault in report.faults if "citations[" not in fault.section)
    stale_ids = {item.citation.id for item in drifted if item.is_stale}
    return QuestionDrift(question.id, drifted, broken, tuple(_resting_on(question, stale_ids)))


def _aimed(citation: Citation, drifted: Drifted | None, store: Store) -> Citation:
    """The citation where it stands now, so that only what the claims say is judged."""
    if drifted is None:
        return citation
    first, last = drifted.lines
    quote = "\n".join(store.lines(drifted.file)[first - 1 : last])
    return msgspec.structs.replace(
        citation, file=drifted.file, lines=drifted.lines, quote=quote, sha256=quote_hash(quote)
    )  # fmt: skip


def _resting_on(question: Question, stale: set[str]) -> Iterator[tuple[str, str]]:
    for passage in passages(question):
        for sentence in sentences(passage.text):
            if stale.intersection(markers(sentence)):
                yield passage.section, sentence


def locate(citation: Citation, old: Resolver, other: Resolver) -> Drifted:
    """Where a citation's lines are in the other version: the same place, another place, or what replaced them."""
    wanted = citation.quote.split("\n")
    store = other.store
    if store.has_file(citation.file):
        lines = store.lines(citation.file)
        if lines[citation.lines[0] - 1 : citation.lines[1]] == wanted:
            return Drifted(citation, "same", citation.file, citation.lines)
    around = enclosing(old, citation)
    for file in _candidate_files(citation, around, store, other):
        first = find_lines(wanted, store.lines(file))
        if first is not None:
            return Drifted(citation, "moved", file, (first, first + len(wanted) - 1))
    return _changed(citation, wanted, around, other)


def enclosing(resolver: Resolver, citation: Citation) -> Symbol | None:
    """The innermost function or class that holds the first cited line."""
    line = citation.lines[0]
    holding = [item for item in resolver.store.symbols_of(citation.file) if item.begin <= line <= item.end]
    inner = [item for item in holding if item.kind != MODULE]
    return max(inner, key=lambda item: item.line) if inner else None


def _candidate_files(citation: Citation, around: Symbol | None, store: Store, other: Resolver) -> list[str]:
    """The same path, files of the same name, files that define what was cited."""
    name = citation.file.rpartition("/")[2]
    files = [path for path in store.paths() if path == citation.file or path.endswith(f"/{name}")]
    files.sort(key=lambda path: path != citation.file)
    defining = [item.file for item in store.symbols_named(around.name)] if around else []
    return list(dict.fromkeys([*files, *defining]))


def _changed(citation: Citation, wanted: Sequence[str], around: Symbol | None, other: Resolver) -> Drifted:
    """What replaced the lines: those of the same definition, or the most similar ones of the same file."""
    place = _replacement(citation, around, other)
    if place is None:
        return Drifted(citation, "vanished")
    file, first, last = place
    lines = other.store.lines(file)[first - 1 : last]
    begin, end = _most_similar(wanted, lines)
    if begin == end:
        return Drifted(citation, "vanished")
    diff = difflib.unified_diff(wanted, lines[begin:end], lineterm="", n=0)
    changes = [line for line in diff if not line.startswith(("---", "+++", "@@"))]
    return Drifted(citation, "changed", file, (first + begin, first + end - 1), tuple(changes[:MAX_DIFF_LINES]))


def _replacement(citation: Citation, around: Symbol | None, other: Resolver) -> tuple[str, int, int] | None:
    if around is not None:
        found = other.store.symbols_of(citation.file, around.qualname) or other.find(around.qualname)
        if len(found) == 1 or (found and found[0].file == citation.file):
            return found[0].file, found[0].begin, found[0].end
        return None
    if other.store.has_file(citation.file):
        return citation.file, 1, len(other.store.lines(citation.file))
    return None


def _most_similar(wanted: Sequence[str], lines: Sequence[str]) -> tuple[int, int]:
    """The stretch of `lines`, as a half-open range, from the first to the last line that `wanted` has too."""
    blocks = difflib.SequenceMatcher(None, wanted, lines, autojunk=False).get_matching_blocks()
    solid = [block for block in blocks if any(line.strip() for line in lines[block.b : block.b + block.size])]
    if not solid:
        return 0, 0
    begin = max(0, solid[0].b - solid[0].a)
    last = solid[-1]
    return begin, min(len(lines), last.b + (len(wanted) - last.a))
