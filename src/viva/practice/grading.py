"""What a grade is: a verdict on each point of the rubric, with the citation that settles it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from viva.bank.schema import Question, RubricPoint

Verdict = Literal["covered", "partly", "missing"]
VERDICTS: tuple[Verdict, ...] = ("covered", "partly", "missing")
WORTH: dict[Verdict, float] = {"covered": 1.0, "partly": 0.5, "missing": 0.0}


class PointGrade(msgspec.Struct, frozen=True, kw_only=True):
    """`citation` is one of the question's; empty if the point has none. `why` says what the verdict rests on."""

    id: str
    verdict: Verdict
    citation: str = ""
    why: str = ""


class Graded(msgspec.Struct, frozen=True, kw_only=True):
    """An answer's grades. `score` is 0..100; `by` is how they came about; `note` says so to the reader, by language."""

    question: str
    points: tuple[PointGrade, ...]
    score: int
    weakest: str
    follow_up: str
    by: Literal["program", "matching"]
    note: dict[str, str]


class Grader(Protocol):
    """Reads one answer. May raise GradingFailed; then the caller falls back and loses nothing."""

    @property
    def by(self) -> Literal["program", "matching"]: ...

    @property
    def note(self) -> dict[str, str]: ...

    def grade(self, question: Question, answer: str) -> tuple[PointGrade, ...]:
        """A grade for each point of the rubric, in its order."""

    def follow_up(self, question: Question, answer: str, points: Sequence[PointGrade], weakest: RubricPoint) -> str:
        """A question on the weakest point."""


def score(question: Question, points: Sequence[PointGrade]) -> int:
    """The share of the rubric's weight that is covered; a part counts half."""
    worth = {point.id: WORTH[point.verdict] for point in points}
    total = sum(point.weight for point in question.rubric)
    return round(100 * sum(point.weight * worth[point.id] for point in question.rubric) / total)


def weakest(question: Question, points: Sequence[PointGrade]) -> RubricPoint | None:
    """The point that lost most weight, the first of several; None if nothing is lost."""
    worth = {point.id: WORTH[point.verdict] for point in points}
    lost = [(point.weight * (1 - worth[point.id]), point) for point in question.rubric]
    most, point = max(lost, key=lambda pair: pair[0])
    return point if most else None


def better(old: Sequence[PointGrade], new: Sequence[PointGrade]) -> tuple[PointGrade, ...]:
    """Point by point the better of two grades: what was covered once stays so."""
    return tuple(b if WORTH[b.verdict] > WORTH[a.verdict] else a for a, b in zip(old, new))
