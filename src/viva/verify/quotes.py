"""Citations against the sources: the lines are there, say what is quoted, and hash to what is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from viva.bank.cite import find_lines, quote_hash, quoted
from viva.bank.load import Bank
from viva.bank.schema import Citation
from viva.errors import LookupFailed
from viva.index.resolve import Resolver

MAX_LINES = 400  # a citation of a whole file cites nothing
SAME_SPAN = 0.5  # intersection over union of two spans


def check_citation(citation: Citation, resolver: Resolver | None) -> str | None:
    """What is wrong with a citation; None if it holds. Without a resolver only the quote, its hash and its number of
    lines are compared."""
    first, last = citation.lines
    place = f"{citation.file}:{first}-{last}"
    if not citation.quote or not citation.sha256:
        return f"{place}: no quote or sha256; run `viva cite`"
    if quote_hash(citation.quote) != citation.sha256:
        return f"{place}: sha256 is {citation.sha256[:12]}..., that of the quote {quote_hash(citation.quote)[:12]}..."
    if last - first + 1 > MAX_LINES:
        return f"{place}: {last - first + 1} lines; cite what is meant, at most {MAX_LINES}"
    if resolver is None:
        lines = citation.quote.count("\n") + 1
        return None if lines == last - first + 1 else f"{place}: {last - first + 1} lines are cited, {lines} quoted"
    return _against_source(citation, resolver, place)


def _against_source(citation: Citation, resolver: Resolver, place: str) -> str | None:
    store = resolver.store
    if not store.has_file(citation.file):
        name = citation.file.rpartition("/")[2]
        near = [path for path in store.paths() if path.endswith(f"/{name}")][:3]
        hint = f"; there is {', '.join(near)}" if near else ""
        return f"{citation.file}: no such file in {store.name}{hint}"
    lines = store.lines(citation.file)
    try:
        there = quoted(citation, lines)
    except LookupFailed as error:
        return error.message
    if there == citation.quote:
        return None
    found = find_lines(citation.quote.split("\n"), lines)
    if found is not None:
        last = found + citation.lines[1] - citation.lines[0]
        return f"{place}: the quote stands at lines {found}-{last} of {store.name}"
    wanted, real = citation.quote.split("\n"), there.split("\n")
    number = next((index for index, (a, b) in enumerate(zip(wanted, real)) if a != b), min(len(wanted), len(real)))
    says = real[number].strip()[:100] if number < len(real) else "(the citation ends)"
    given = wanted[number].strip()[:100] if number < len(wanted) else "(the quote ends)"
    return f"{place}: line {citation.lines[0] + number} of {store.name} says {says!r}, the quote {given!r}"


def doubled_spans(bank: Bank) -> Iterator[tuple[str, str, str]]:
    """(question, citation, message) for each span that an earlier question, or the same one, cites already."""
    seen: dict[tuple[str, str], list[tuple[str, Citation]]] = {}
    for question in bank.questions:
        for citation in question.citations:
            earlier = seen.setdefault((citation.source, citation.file), [])
            for other, known in earlier:
                if overlap(known.lines, citation.lines) >= (SAME_SPAN if other != question.id else 1.0):
                    yield (
                        question.id,
                        citation.id,
                        f"{citation.file}:{citation.lines[0]}-{citation.lines[1]} is the span that {other} cites as "
                        f"{known.id} ({known.lines[0]}-{known.lines[1]})",
                    )
            earlier.append((question.id, citation))


def overlap(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Lines in common over lines in either."""
    common = min(first[1], second[1]) - max(first[0], second[0]) + 1
    if common <= 0:
        return 0.0
    return common / (max(first[1], second[1]) - min(first[0], second[0]) + 1)


def external_sources(bank: Bank) -> Mapping[str, str]:
    """What to call each source if it was not fetched."""
    names = {
        source.id: f"{source.repository}@{(source.commit or '')[:12]}" if source.repository else f"{source.package}"
        for source in bank.file.sources
    }
    return {source: f"{name} (not fetched: quotes and hashes agree, no more)" for source, name in names.items()}
