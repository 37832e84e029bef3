"""The pages: a bank on one (served, or as a file that needs nothing else), and a file of its source."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from viva.bank.load import Bank
from viva.bank.schema import MODULES, Question
from viva.render.highlight import numbered
from viva.render.labels import LABELS, attribute, both, label
from viva.render.view import SourceLink, views
from viva.render.words import level_name, module_name, pinned

FOLDER = Path(__file__).parent
FORMATS = ("md", "html", "anki", "json")


class CitedSpan(msgspec.Struct, frozen=True):
    """A question's citation into the file that is shown."""

    question: str
    number: int
    title: str
    first: int
    last: int
    link: str


def static_text(name: str) -> str:
    return (FOLDER / "static" / name).read_text(encoding="utf-8")


def bank_page(bank: Bank, questions: Sequence[Question], *, link: SourceLink | None = None) -> str:
    """A bank's questions. With `link` it is the page of `viva serve`; without, a file that works by itself."""
    return (
        _environment()
        .get_template("bank.html.jinja")
        .render(
            bank=bank,
            questions=views(bank, questions, link or (lambda citation: None)),
            levels=sorted({question.level for question in questions}),
            modules=[name for name in MODULES if any(question.module == name for question in questions)],
            mode="served" if link else "file",
            formats=FORMATS,
            head=_linked_head() if link else _inline_head(),
            foot=_labels() + (Markup('<script src="/static/page.js"></script>') if link else _inline_script()),
        )
    )


def source_page(
    lines: Sequence[str], *, path: str, source: str, hit: tuple[int, int] | None, cited: Sequence[CitedSpan]
) -> str:
    """One file, its lines highlighted already, the cited ones marked."""
    return (
        _environment()
        .get_template("source.html.jinja")
        .render(
            path=path,
            source=source,
            lines=hit,
            cited=cited,
            code=Markup(numbered(lines, first=1, hit=hit, anchors=True)),
            head=_linked_head(),
            foot=Markup('<script src="/static/page.js"></script>'),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        t=label, a=attribute, both=both, level_name=level_name, module_name=module_name, pinned=pinned
    )
    return environment


def _labels() -> Markup:
    """The labels that the script writes; a JSON block is data and runs nowhere."""
    keys = ("grading", "failed", "covered", "partly", "missing", "follow_up", "grade")
    data = json.dumps({key: LABELS[key] for key in keys}, ensure_ascii=False).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="labels">{data}</script>\n')


def _linked_head() -> Markup:
    return Markup('<link rel="stylesheet" href="/static/page.css"><link rel="icon" href="data:,">')


def _inline_head() -> Markup:
    """Style inside the file, and a policy that lets nothing in but that style and this script."""
    style, script = static_text("page.css"), static_text("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; base-uri 'none'"
    )
    return Markup(
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>"
    )


def _inline_script() -> Markup:
    return Markup(f"<script>{static_text('page.js')}</script>")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
