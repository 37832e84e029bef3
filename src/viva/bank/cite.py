"""Citations: the hash of quoted lines, and `viva cite`, which fills quote and sha256 from file and lines."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
import yaml

from viva.bank.schema import Citation, Question
from viva.bank.yaml_text import compose, parse_yaml, plain
from viva.errors import BankError, LookupFailed

BREAKS_A_BLOCK = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029\ufeff]")

LinesOf = Callable[[Citation], Sequence[str]]  # all lines of the cited file


def quote_hash(quote: str) -> str:
    """sha256 of the quoted lines, joined by line feeds, without a last one."""
    return hashlib.sha256(quote.encode("utf-8")).hexdigest()


def quoted(citation: Citation, lines: Sequence[str]) -> str:
    """The cited lines of the file; LookupFailed where they are not in it."""
    first, last = citation.lines
    if last > len(lines):
        raise LookupFailed(
            f"{citation.id}: lines {first}-{last} are outside {citation.file}, which has {len(lines)} lines",
            field=citation.file,
        )
    return "\n".join(lines[first - 1 : last])


def find_lines(wanted: Sequence[str], lines: Sequence[str]) -> int | None:
    """The line, from 1, where these lines stand in a file; None if nowhere."""
    length = len(wanted)
    starts = (index for index, line in enumerate(lines) if line == wanted[0])
    return next((start + 1 for start in starts if list(lines[start : start + length]) == list(wanted)), None)


def fill_citations(path: Path, lines_of: LinesOf, *, move: bool = False, follow: Collection[str] = ()) -> int:
    """Rewrite the `citations` of a question's file with quote and hash; the rest of the file stays as it is. Returns
    how many were filled. One that has a quote keeps it, unless `move` says that its lines were changed on purpose;
    one of a source in `follow` gets the lines where its quote stands now, if it stands anywhere in its file."""
    text = path.read_text(encoding="utf-8")
    question = parse_yaml(text, Question, name=str(path))
    try:
        filled = [_filled(citation, lines_of, move=move, follow=follow) for citation in question.citations]
    except LookupFailed as error:
        raise LookupFailed(f"{path}: {error.message}", field=error.field) from error
    changed = sum(old != new for old, new in zip(question.citations, filled))
    if changed:
        path.write_text(_with_citations(text, filled, name=str(path)), encoding="utf-8")
    return changed


def _filled(citation: Citation, lines_of: LinesOf, *, move: bool, follow: Collection[str]) -> Citation:
    if citation.quote and citation.source in follow:
        citation = _followed(citation, lines_of(citation))
    if citation.quote and not move:
        return msgspec.structs.replace(citation, sha256=citation.sha256 or quote_hash(citation.quote))
    quote = quoted(citation, lines_of(citation))
    if not quote.splitlines()[:1] or not quote.split("\n")[0].strip() or not quote.split("\n")[-1].strip():
        raise LookupFailed(
            f"{citation.id}: {citation.file}:{citation.lines[0]}-{citation.lines[1]} begins or ends with an empty "
            "line; narrow it",
            field=citation.file,
        )
    return msgspec.structs.replace(citation, quote=quote, sha256=quote_hash(quote))


def _followed(citation: Citation, lines: Sequence[str]) -> Citation:
    quote = citation.quote.split("\n")
    first, last = citation.lines
    found = None if list(lines[first - 1 : last]) == quote else find_lines(quote, lines)
    return msgspec.structs.replace(citation, lines=(found, found + len(quote) - 1)) if found else citation


def _with_citations(text: str, citations: Sequence[Citation], *, name: str) -> str:
    root = compose(text, name=name)
    if not isinstance(root, yaml.MappingNode):
        raise BankError(f"{name}: a question is a mapping", field=name)
    keys = [key for key, _ in root.value]
    index = next(number for number, key in enumerate(keys) if key.value == "citations")
    lines = text.split("\n")
    begin = keys[index].start_mark.line
    end = keys[index + 1].start_mark.line if index + 1 < len(keys) else len(lines)
    while end > begin + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1  # blank lines and comments above the next key belong to it
    return "\n".join([*lines[:begin], *citations_block(citations), *lines[end:]])


def citations_block(citations: Sequence[Citation]) -> list[str]:
    """The lines of `citations:` as viva writes them."""
    block = ["citations:"]
    for citation in citations:
        block += [
            f"- id: {citation.id}",
            f"  source: {citation.source}",
            f"  file: {plain(citation.file)}",
            f"  lines: [{citation.lines[0]}, {citation.lines[1]}]",
        ]
        block += [f"  commit: '{citation.commit}'"] if citation.commit else []
        block += [f"  sha256: '{citation.sha256}'"]
        block += _quote_lines(citation.quote)
    return block


def _quote_lines(quote: str) -> list[str]:
    if BREAKS_A_BLOCK.search(quote):
        escaped = BREAKS_A_BLOCK.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(quote, ensure_ascii=False))
        return [f"  quote: {escaped}"]
    return ["  quote: |2-", *(f"    {line}" if line else "" for line in quote.split("\n"))]
