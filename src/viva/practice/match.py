"""Grading without a model: which of a point's key terms the answer uses.

It compares words, not arguments: it cannot tell a right sentence from a wrong one with the same words, and a good
answer in other words scores low. It is what practice does with the embedded model, and
wherever grading by a model fails.

A point's terms are its identifiers, words, numbers, and pairs of neighbouring Chinese characters. A term weighs more
the fewer of the bank's texts use it (inverse document frequency), and little if the question itself gives it away.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from viva.bank.load import Bank
from viva.bank.schema import Question, RubricPoint
from viva.practice.grading import PointGrade, Verdict
from viva.render.pieces import MARKER

WORD = re.compile(r"[a-z_][a-z0-9_]*|[0-9]+(?:\.[0-9]+)?")
SPELLED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+(?:\.[0-9]+)?")
CHINESE = re.compile(r"[\u4e00-\u9fff]+")
COVERED, PARTLY = 0.40, 0.22  # shares of a point's weight; measured on the shipped bank, see docs/viva.md
IDENTIFIER_WORTH, WORD_WORTH, PAIR_WORTH = 3.0, 1.5, 1.0
GIVEN_AWAY = 0.25  # a term that stands in the question
NUM_NAMED = 3  # terms that a remark or a follow-up names

NOTE = {
    "zh": "按要点的关键词匹配评分，没有使用模型：内嵌模型（SmolLM2-135M）太小，评分不可靠。它只比较用词，"
    "不判断论证对错；要由模型评分，请给出 --endpoint 或更大的 --model。",
    "en": "Graded by matching key terms, without a model: the embedded one (SmolLM2-135M) is too small to grade. It"
    " compares words and does not judge the argument; give --endpoint or a larger --model to be graded by a model.",
}
WHY = {"zh": ("用到：{used}", "未提及：{missed}", "；"), "en": ("used: {used}", "not mentioned: {missed}", "; ")}
FOLLOW_UP = {
    "zh": "你的回答没有展开这一点。请结合源码说明 {terms} 在这里各起什么作用、为什么必须如此。",
    "en": "Your answer does not develop one point. Explain from the source what {terms} do here,"
    " and why it has to be so.",
}
FOLLOW_UP_BARE = {
    "zh": "你的回答还缺一个要点。请沿着你描述的流程再走一遍，说明哪一步最容易出错、源码怎样防住它。",
    "en": "Your answer lacks one point. Walk through your flow again: which step is easiest to get wrong,"
    " and what prevents it?",
}


class Matcher:
    """The grader that needs no model. `note` may add why one was not used."""

    by: Literal["matching"] = "matching"

    def __init__(self, bank: Bank) -> None:
        self.note = NOTE
        self._language = bank.file.language
        texts = [text for question in bank.questions for text in _texts(question)]
        self._num_texts = len(texts)
        self._num_texts_with = Counter(term for text in texts for term in set(terms(text)))

    def grade(self, question: Question, answer: str) -> tuple[PointGrade, ...]:
        used = set(terms(answer))
        return tuple(self._point(question, point, used) for point in question.rubric)

    def follow_up(self, question: Question, answer: str, points: Sequence[PointGrade], weakest: RubricPoint) -> str:
        """Names what the answer left out, without saying the point."""
        used = set(terms(answer))
        missed = _named(self._weights(question, weakest), weakest, beside=used)
        if not missed:
            return FOLLOW_UP_BARE[self._language]
        return FOLLOW_UP[self._language].format(terms=", ".join(f"`{term}`" for term in missed))

    def _point(self, question: Question, point: RubricPoint, used: set[str]) -> PointGrade:
        weights = self._weights(question, point)
        total = sum(weights.values())
        share = sum(weight for term, weight in weights.items() if term in used) / total if total else 0.0
        verdict: Verdict = "covered" if share >= COVERED else "partly" if share >= PARTLY else "missing"
        had = _named(weights, point, among=used, beside=set())
        missed = _named(weights, point, beside=used)
        with_used, with_missed, between = WHY[self._language]
        why = [with_used.format(used=", ".join(had))] if had else []
        why += [with_missed.format(missed=", ".join(missed))] if missed and verdict != "covered" else []
        citation = point.citations[0] if point.citations else ""
        return PointGrade(id=point.id, verdict=verdict, citation=citation, why=between.join(why))

    def _weights(self, question: Question, point: RubricPoint) -> dict[str, float]:
        given = set(terms(question.title))
        weights = {}
        for term in dict.fromkeys(terms(point.point)):
            rarity = math.log((1 + self._num_texts) / (1 + self._num_texts_with[term]))
            weights[term] = rarity * _worth(term) * (GIVEN_AWAY if term in given else 1.0)
        return weights


def _named(
    weights: dict[str, float], point: RubricPoint, *, among: set[str] | None = None, beside: set[str]
) -> list[str]:
    """The heaviest words and identifiers as the point spells them; pairs of characters would say little to a reader."""
    spelled = {word.lower(): word for word in SPELLED.findall(point.point)}
    chosen = [term for term in sorted(weights, key=lambda term: -weights[term]) if term in spelled]
    chosen = [term for term in chosen if term not in beside and (among is None or term in among)]
    return [spelled[term] for term in chosen[:NUM_NAMED]]


def terms(text: str) -> Iterator[str]:
    """Words and numbers in lower case, the parts of dotted names each, and pairs of Chinese characters."""
    text = MARKER.sub(" ", text).lower()
    yield from WORD.findall(text)
    for run in CHINESE.findall(text):
        yield from (run[at : at + 2] for at in range(len(run) - 1))


def _worth(term: str) -> float:
    if CHINESE.match(term):
        return PAIR_WORTH
    return IDENTIFIER_WORTH if "_" in term else WORD_WORTH


def _texts(question: Question) -> list[str]:
    answer = question.answer
    parts = [answer.overview, *answer.flow, answer.layout, answer.tradeoffs, *answer.evolution]
    return [
        question.title,
        *parts,
        *(each.text for each in answer.comparison),
        *(point.point for point in question.rubric),
    ]
