"""`viva practice`: questions in the terminal."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from viva.bank.load import Bank, load_bank
from viva.bank.schema import MODULES, Question
from viva.errors import BankError
from viva.place import cache_folder
from viva.practice.grading import Graded
from viva.practice.model import add_model_arguments, chosen_grader
from viva.practice.report import VERDICT_NAMES
from viva.practice.session import Session
from viva.render.pieces import plain
from viva.render.words import level_name, module_name, place

DESCRIPTION = """\
Be asked, answer, and be graded against each question's rubric. The report is written after every answer.

  viva practice banks/sglang-0.5.23 --level 4 --count 3
  viva practice BANK --endpoint http://127.0.0.1:8000/v1     graded by a model there (its key in VIVA_API_KEY)
  viva practice BANK --model Qwen/Qwen3-8B                   graded by a local model

An answer ends with a line that holds a full stop alone. :skip leaves a question out, :quit or Ctrl-D ends the session.
Without --endpoint and --model points are matched by their key terms, which is rough, and said so."""

END, SKIP, QUIT = ".", ":skip", ":quit"
WORDS = {
    "zh": {
        "how": "单独一行 . 结束回答；:skip 跳过；:quit 结束。",
        "follow_up": "追问",
        "report": "报告：{path}",
        "nothing": "没有符合 --level/--module 的题目",
    },
    "en": {
        "how": "A line with . ends an answer; :skip leaves a question out; :quit ends.",
        "follow_up": "Follow-up",
        "report": "report: {path}",
        "nothing": "no question fits --level and --module",
    },
}


class SessionEnds(Exception):
    """The candidate has had enough."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="a bank's folder")
    parser.add_argument("--level", type=int, choices=(2, 3, 4, 5), action="append", help="this level; may be repeated")
    parser.add_argument("--module", choices=tuple(MODULES), action="append", help="this module; may be repeated")
    parser.add_argument("--count", type=int, metavar="N", default=3, help="how many questions (3)")
    parser.add_argument("--seed", type=int, help="the same questions in the same order again")
    parser.add_argument("--session", type=Path, metavar="FOLDER", help="where session.json and report.md go")
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    bank = load_bank(arguments.bank)
    questions = choose(bank, arguments)
    words = WORDS[bank.file.language]
    with chosen_grader(arguments, bank) as grader:
        session = Session(bank, grader, folder=arguments.session or new_folder(bank))
        print(grader.note[bank.file.language], words["how"], sep="\n")
        try:
            for number, question in enumerate(questions, start=1):
                _ask(session, question, bank, number=f"{number}/{len(questions)}")
        except (SessionEnds, KeyboardInterrupt):
            print()
    if session.items:
        print(words["report"].format(path=session.folder / "report.md"))
    return 0


def choose(bank: Bank, arguments: argparse.Namespace) -> list[Question]:
    """Questions at random, in the order of their levels."""
    if arguments.count < 1:
        raise BankError(f"--count {arguments.count}: give at least 1", field="--count")
    fit = [each for each in bank.questions if not arguments.level or each.level in arguments.level]
    fit = [each for each in fit if not arguments.module or each.module in arguments.module]
    if not fit:
        raise BankError(f"{arguments.bank}: {WORDS[bank.file.language]['nothing']}", field="--level")
    drawn = random.Random(arguments.seed).sample(fit, min(arguments.count, len(fit)))
    return sorted(drawn, key=lambda question: question.level)


def new_folder(bank: Bank) -> Path:
    """A folder of its own for each session."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return cache_folder() / "sessions" / f"{stamp}-{bank.folder.resolve().name}"


def _ask(session: Session, question: Question, bank: Bank, *, number: str) -> None:
    language = bank.file.language
    print(f"\n[{number}] {level_name(question.level, language)} · {module_name(question.module, language)}")
    print(f"{plain(question.title)}\n")
    answer = _read_answer()
    if answer is None:
        return
    graded = session.answer(question, answer)
    _show(graded, question, language)
    if graded.follow_up:
        print(f"\n{WORDS[language]['follow_up']}: {graded.follow_up}\n")
        more = _read_answer()
        if more is not None:
            _show(session.follow_up(question, more), question, language)


def _read_answer() -> str | None:
    """The lines up to the full stop; None to skip. SessionEnds where the input does, unless something was said."""
    lines: list[str] = []
    for line in _typed():
        if line.strip() == QUIT:
            raise SessionEnds
        if line.strip() == SKIP:
            return None
        if line.strip() == END:
            return "\n".join(lines) if "".join(lines).strip() else None
        lines.append(line)
    if "".join(lines).strip():
        return "\n".join(lines)
    raise SessionEnds


def _typed() -> Iterator[str]:
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return


def _show(graded: Graded, question: Question, language: str) -> None:
    places = {citation.id: place(citation) for citation in question.citations}
    points = {point.id: point for point in question.rubric}
    print(f"\n{graded.score} / 100")
    for grade in graded.points:
        print(f"  [{VERDICT_NAMES[language][grade.verdict]}] {plain(points[grade.id].point)}")
        settled = f"[{grade.citation}] {places[grade.citation]}" if grade.citation else ""
        print("      " + "  ".join(part for part in (settled, grade.why) if part))
    print(graded.note[language])
