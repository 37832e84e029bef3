"""A session: what was asked, answered and graded, on disk after every step."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from viva.bank.load import Bank
from viva.bank.schema import Question
from viva.errors import VivaError
from viva.practice.grading import Graded, Grader, better, score, weakest
from viva.practice.match import Matcher
from viva.practice.program import GradingFailed
from viva.practice.report import session_markdown

FALLBACK = {
    "zh": "模型评分没有成功（{reason}），已改用关键词匹配；答案已保存。",
    "en": "Grading by the model failed ({reason}); key terms were matched instead, and the answer is kept.",
}


class Item(msgspec.Struct, kw_only=True):
    """One question of a session. `graded` is None between the answer and its grades."""

    question: str
    answer: str
    graded: Graded | None = None
    follow_up_answer: str = ""
    final: Graded | None = None  # after the follow-up


class Record(msgspec.Struct, kw_only=True):
    """The JSON of a session."""

    schema: str = "viva-session/1"
    bank: str
    started: str
    items: list[Item]


class Session:
    """Grades with `grader`, with the matcher where that fails; writes session.json and report.md into `folder`."""

    def __init__(self, bank: Bank, grader: Grader, *, folder: Path, now: Callable[[], datetime] = datetime.now) -> None:
        self.folder = folder
        self._bank, self._grader, self._matcher = bank, grader, Matcher(bank)
        started = now().isoformat(timespec="seconds")
        self._record = Record(bank=bank.file.title, started=started, items=[])

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(self._record.items)

    def answer(self, question: Question, answer: str) -> Graded:
        """Keep an answer, then grade it. An earlier answer to the same question stays in the record."""
        if not answer.strip():
            raise VivaError("the answer is empty", field="answer")
        item = Item(question=question.id, answer=answer)
        self._record.items.append(item)
        self._write()
        item.graded = self._graded(question, answer, ask=True)
        self._write()
        return item.graded

    def follow_up(self, question: Question, answer: str) -> Graded:
        """Grade the last answer together with what was said to the follow-up: no point gets worse by it."""
        item = next((each for each in reversed(self._record.items) if each.question == question.id), None)
        if item is None or item.graded is None or not item.graded.follow_up:
            raise VivaError(f"{question.id}: no follow-up was asked", field="follow_up")
        if not answer.strip():
            raise VivaError("the answer is empty", field="answer")
        item.follow_up_answer = answer
        self._write()
        again = self._graded(question, f"{item.answer}\n{answer}", ask=False)
        points = better(item.graded.points, again.points)
        item.final = msgspec.structs.replace(again, points=points, score=score(question, points))
        self._write()
        return item.final

    def json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self._record), indent=1) + b"\n"

    def markdown(self) -> str:
        return session_markdown(self._bank, self._record.started, self._record.items)

    def _graded(self, question: Question, answer: str, *, ask: bool) -> Graded:
        try:
            return self._by(self._grader, question, answer, ask=ask)
        except GradingFailed as error:
            graded = self._by(self._matcher, question, answer, ask=ask)
            note = {
                language: f"{text.format(reason=error.message)} {graded.note[language]}"
                for language, text in FALLBACK.items()
            }
            return msgspec.structs.replace(graded, note=note)

    @staticmethod
    def _by(grader: Grader, question: Question, answer: str, *, ask: bool) -> Graded:
        points = grader.grade(question, answer)
        weak = weakest(question, points)
        return Graded(
            question=question.id,
            points=points,
            score=score(question, points),
            weakest=weak.id if weak else "",
            follow_up=grader.follow_up(question, answer, points, weak) if weak and ask else "",
            by=grader.by,
            note=dict(grader.note),
        )

    def _write(self) -> None:
        _replace(self.folder / "session.json", self.json())
        _replace(self.folder / "report.md", self.markdown().encode())


def _replace(path: Path, data: bytes) -> None:
    """A file is the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(path.suffix + ".part")
    beside.write_bytes(data)
    os.replace(beside, path)
