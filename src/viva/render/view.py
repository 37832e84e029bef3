"""A question as what a page shows: numbered, its prose and code as safe HTML.

Every text of a bank is escaped here, where it becomes HTML; the templates escape what is still text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import msgspec
from markupsafe import Markup

from viva.bank.load import Bank
from viva.bank.schema import BankFile, Citation, Question
from viva.render.highlight import highlighted, numbered
from viva.render.pieces import paragraphs, pieces, plain, tidy
from viva.render.words import SECTIONS, pinned, place, product, section_name

SourceLink = Callable[[Citation], str | None]
"""Where the cited lines can be read in their file; None where nowhere."""


NO_BREAK = "\u2060"  # a marker stays on the line of what it proves


class CitationView(msgspec.Struct, frozen=True):
    """A citation on a page. `key` is unique in the bank; `link` leads to the lines in their file, if it can be had."""

    key: str
    id: str
    source: str
    place: str
    sha256: str
    checked: bool
    link: str | None
    code: Markup


class SectionView(msgspec.Struct, frozen=True):
    """One of the seven, with its heading in both languages."""

    key: str
    number: int
    names: dict[str, str]
    body: Markup


class PointView(msgspec.Struct, frozen=True):
    """A point of the rubric."""

    id: str
    text: Markup
    weight: int
    cited: Markup


class QuestionView(msgspec.Struct, frozen=True):
    """Everything a page shows of a question."""

    id: str
    number: int
    level: int
    module: str
    false_premise: bool
    title: Markup
    plain_title: str
    premise: Markup | None
    absent: tuple[str, ...]
    sections: list[SectionView]
    citations: list[CitationView]
    rubric: list[PointView]


def views(bank: Bank, questions: Sequence[Question], link: SourceLink) -> list[QuestionView]:
    """Some questions, under the numbers that they have in the bank."""
    chosen = {question.id for question in questions}
    numbered = [(number, each) for number, each in enumerate(bank.questions, start=1) if each.id in chosen]
    return [question_view(each, bank.file, number=number, link=link) for number, each in numbered]


def question_view(question: Question, file: BankFile, *, number: int, link: SourceLink) -> QuestionView:
    citations = [_citation(question, each, file, link) for each in question.citations]
    prose = Prose(citations)
    return QuestionView(
        id=question.id,
        number=number,
        level=question.level,
        module=question.module,
        false_premise=question.kind == "false-premise",
        title=prose.line(question.title),
        plain_title=plain(question.title),
        premise=prose.line(question.premise.claim) if question.premise else None,
        absent=question.premise.absent if question.premise else (),
        sections=[
            SectionView(
                section,
                position,
                {language: section_name(section, question, file, language) for language in ("zh", "en")},
                _body(section, question, file, prose),
            )
            for position, section in enumerate(SECTIONS, start=1)
        ],
        citations=citations,
        rubric=[
            PointView(point.id, prose.line(point.point), point.weight, prose.markers(point.citations))
            for point in question.rubric
        ],
    )


class Prose:
    """Prose to HTML; a marker becomes a link to its citation."""

    def __init__(self, citations: list[CitationView]) -> None:
        self._citations = {citation.id: citation for citation in citations}

    def line(self, text: str) -> Markup:
        parts = []
        for piece in pieces(tidy(text)):
            match piece.kind:
                case "text":
                    parts.append(escape(piece.text))
                case "code":
                    parts.append(f"<code>{escape(piece.text)}</code>")
                case "strong":
                    parts.append(f"<strong>{escape(piece.text)}</strong>")
                case "marker":
                    if parts:
                        parts[-1] = parts[-1].removesuffix(" ")
                    parts.append(self.markers(piece.ids))
        return Markup("".join(parts))

    def paragraphs(self, text: str) -> Markup:
        return Markup("".join(f"<p>{self.line(each)}</p>" for each in paragraphs(text)))

    def markers(self, ids: tuple[str, ...]) -> Markup:
        return Markup("".join(NO_BREAK + self._marker(each) for each in ids))

    def _marker(self, citation_id: str) -> str:
        citation = self._citations.get(citation_id)
        if citation is None:
            return f'<span class="cite none">{escape(citation_id)}</span>'
        where = escape(f"{citation.source} {citation.place}")
        return (
            f'<a class="cite" href="{escape(citation.link or "#" + citation.key)}" data-cite="{citation.key}"'
            f' title="{where}">{escape(citation_id[1:])}</a>'
        )


def _citation(question: Question, citation: Citation, file: BankFile, link: SourceLink) -> CitationView:
    source = next(each for each in file.sources if each.id == citation.source)
    lines = highlighted(citation.quote, name=citation.file)
    return CitationView(
        key=f"{question.id}--{citation.id}",
        id=citation.id,
        source=pinned(source, citation),
        place=place(citation),
        sha256=citation.sha256,
        checked=source.checked,
        link=link(citation),
        code=Markup(numbered(lines, first=citation.lines[0], hit=citation.lines)),
    )


def _body(section: str, question: Question, file: BankFile, prose: Prose) -> Markup:
    answer = question.answer
    match section:
        case "pseudocode":
            return Markup(_pseudocode(question, prose))
        case "flow":
            return Markup(f'<ol class="flow">{"".join(f"<li>{prose.line(step)}</li>" for step in answer.flow)}</ol>')
        case "layout":
            return prose.paragraphs(answer.layout) + Markup(_facts(question))
        case "comparison":
            sources = {source.id: source for source in file.sources}
            parts = []
            for each in answer.comparison:
                name = escape(product(sources.get(each.system), each.system))
                parts.append(f'<h4>{name}</h4><div lang="{file.language}">{prose.paragraphs(each.text)}</div>')
            return Markup("".join(parts))
        case "evolution":
            return Markup("<ul>" + "".join(f"<li>{prose.line(each)}</li>" for each in answer.evolution) + "</ul>")
        case _:
            return prose.paragraphs(answer.overview if section == "overview" else answer.tradeoffs)


def _pseudocode(question: Question, prose: Prose) -> str:
    pseudocode = question.answer.pseudocode
    lines = "\n".join(highlighted(pseudocode.text.rstrip()))
    dynamic = "".join(
        f"<li><code>{escape(each.caller)}</code> → <code>{escape(each.callee)}</code> "
        f"(<code>{escape(each.via)}</code>) {prose.line(each.reason)}</li>"
        for each in pseudocode.dynamic
    )
    listed = f'<ul class="dynamic">{dynamic}</ul>' if dynamic else ""
    return f'<pre class="code" tabindex="0"><code>{lines}</code></pre>{listed}'


def _facts(question: Question) -> str:
    """Fields and signatures as two lists of code."""
    rows = []
    for field in question.answer.fields:
        kind = f": {field.type}" if field.type else ""
        default = f" = {field.default}" if field.default else ""
        rows.append(f"<li><code>{escape(f'{field.owner}.{field.name}{kind}{default}')}</code></li>")
    rows += [f"<li><code>{escape(each.symbol + each.signature)}</code></li>" for each in question.answer.signatures]
    return f'<ul class="facts">{"".join(rows)}</ul>' if rows else ""
