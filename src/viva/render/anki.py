"""A bank as an Anki package: a note a question, a deck a level. A note keeps its identity when its text changes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

import genanki

from viva.bank.load import Bank
from viva.bank.schema import Question
from viva.render.labels import LABELS
from viva.render.page import static_text
from viva.render.view import QuestionView, views
from viva.render.words import SECTION_NAMES, SECTIONS, level_name, module_name

FIELDS = ("question", "about", *SECTIONS, "rubric", "citations", "id")
FRONT = '<div class="about">{{about}}</div><div class="question">{{question}}</div>'


def write_anki(bank: Bank, questions: Sequence[Question], path: Path) -> None:
    """Write an .apkg that Anki, AnkiDroid and AnkiMobile import."""
    model = _model(bank)
    decks: dict[int, genanki.Deck] = {}
    for question, view in zip(questions, views(bank, questions, lambda citation: None)):
        name = f"{bank.file.title}::{level_name(question.level, bank.file.language)}"
        deck = decks.setdefault(question.level, genanki.Deck(_number(name), name))
        deck.add_note(
            genanki.Note(
                model=model,
                fields=_fields(view, bank.file.language),
                guid=genanki.guid_for("viva", bank.file.title, question.id),
                tags=[f"level-{question.level}", question.module, question.kind],
            )
        )
    genanki.Package([decks[level] for level in sorted(decks)]).write_to_file(str(path))


def _fields(view: QuestionView, language: str) -> list[str]:
    rubric = "".join(f"<li>{point.text} ({point.weight})</li>" for point in view.rubric)
    citations = "".join(
        f"<li>[{each.id[1:]}] {escape(f'{each.source} {each.place}')}<pre>{each.code}</pre></li>"
        for each in view.citations
    )
    about = f"{level_name(view.level, language)} · {module_name(view.module, language)}"
    bodies = [str(section.body) for section in view.sections]
    return [str(view.title), about, *bodies, f"<ul>{rubric}</ul>", f"<ul>{citations}</ul>", view.id]


def _model(bank: Bank) -> genanki.Model:
    """Fields, the one card, and the style: the page's code colours, small enough for a phone."""
    column = 0 if bank.file.language == "zh" else 1
    sections = "".join(
        f"<details open><summary>{_heading(section, bank)}</summary>{{{{{section}}}}}</details>" for section in SECTIONS
    )
    after = "".join(
        f"<details><summary>{LABELS[key][column]}</summary>{{{{{key}}}}}</details>" for key in ("rubric", "citations")
    )
    back = f'{{{{FrontSide}}}}<hr id="answer">{sections}{after}'
    name = f"viva/1 {bank.file.language}"
    return genanki.Model(
        _number(name),
        name,
        fields=[{"name": field} for field in FIELDS],
        templates=[{"name": "viva", "qfmt": FRONT, "afmt": back}],
        css=static_text("anki.css"),
    )


def _heading(section: str, bank: Bank) -> str:
    return SECTION_NAMES[bank.file.language][section].format(others="vLLM …")  # one heading for all notes


def _number(name: str) -> int:
    """A stable id in the range that Anki's own have."""
    return (1 << 30) + int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:4], "big") % (1 << 30)
