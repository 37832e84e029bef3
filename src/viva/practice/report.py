"""A session's report as Markdown, in the bank's language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from viva.bank.load import Bank
from viva.bank.schema import Question
from viva.practice.grading import Graded, Verdict
from viva.render.pieces import plain
from viva.render.words import level_name, module_name, place

WORDS = {
    "zh": {
        "title": "练习报告：{bank}",
        "started": "开始于 {started}，共 {num} 题，平均 {mean} 分",
        "table": "| 问题 | 层级 | 模块 | 得分 |",
        "point": "| 要点 | 判定 | 依据 | 说明 |",
        "answer": "回答",
        "follow_up": "追问",
        "ungraded": "未评分（答案已保存）",
        "empty": "还没有回答任何问题。",
        "weakest": "最弱模块",
    },
    "en": {
        "title": "Practice: {bank}",
        "started": "started {started}, {num} questions, {mean} points on average",
        "table": "| Question | Level | Module | Score |",
        "point": "| Point | Verdict | Settled by | Why |",
        "answer": "Answer",
        "follow_up": "Follow-up",
        "ungraded": "not graded (the answer is kept)",
        "empty": "No question was answered yet.",
        "weakest": "Weakest module",
    },
}
VERDICT_NAMES: dict[str, dict[Verdict, str]] = {
    "zh": {"covered": "覆盖", "partly": "部分", "missing": "缺失"},
    "en": {"covered": "covered", "partly": "partly", "missing": "missing"},
}


class Answered(Protocol):
    """What the report reads of an item of a session."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def graded(self) -> Graded | None: ...
    @property
    def follow_up_answer(self) -> str: ...
    @property
    def final(self) -> Graded | None: ...


def session_markdown(bank: Bank, started: str, items: Sequence[Answered]) -> str:
    """Scores in a table, then each answer with its grades."""
    words, language = WORDS[bank.file.language], bank.file.language
    questions = {question.id: question for question in bank.questions}
    grades = [(questions[item.question], item.final or item.graded) for item in items]
    scores = [graded.score for _, graded in grades if graded]
    lines = ["# " + words["title"].format(bank=bank.file.title), ""]
    if not items:
        return "\n".join([*lines, words["empty"], ""])
    mean = round(sum(scores) / len(scores)) if scores else "-"
    lines += [words["started"].format(started=started, num=len(items), mean=mean), ""]
    lines += [words["table"], "| --- | --- | --- | --- |"]
    for question, graded in grades:
        shown = str(graded.score) if graded else words["ungraded"]
        about = f"{level_name(question.level, language)} | {module_name(question.module, language)}"
        lines.append(f"| {_cell(plain(question.title))} | {about} | {shown} |")
    if weak := _weakest_module(grades):
        lines += ["", f"{words['weakest']}: {module_name(weak, language)}"]
    for item in items:
        lines += ["", *_item(questions[item.question], item, language)]
    return "\n".join(lines) + "\n"


def _item(question: Question, item: Answered, language: str) -> Iterator[str]:
    words = WORDS[language]
    yield f"## {plain(question.title)}"
    yield ""
    yield f"{words['answer']}:"
    yield ""
    yield from _quoted(item.answer)
    graded = item.final or item.graded
    if item.graded and item.graded.follow_up:
        yield from ("", f"{words['follow_up']}: {item.graded.follow_up}", "")
        yield from _quoted(item.follow_up_answer or "-")
    yield ""
    if graded is None:
        yield words["ungraded"]
        return
    places = {citation.id: place(citation) for citation in question.citations}
    points = {point.id: point for point in question.rubric}
    yield f"**{graded.score} / 100**"
    yield from ("", words["point"], "| --- | --- | --- | --- |")
    for grade in graded.points:
        settled = f"[{grade.citation}] `{places[grade.citation]}`" if grade.citation else "-"
        verdict = VERDICT_NAMES[language][grade.verdict]
        yield f"| {_cell(plain(points[grade.id].point))} | {verdict} | {settled} | {_cell(grade.why)} |"
    yield from ("", graded.note[language])


def _weakest_module(grades: Sequence[tuple[Question, Graded | None]]) -> str:
    """The module with the lowest mean; nothing unless there are two to compare."""
    scores: dict[str, list[int]] = {}
    for question, graded in grades:
        if graded:
            scores.setdefault(question.module, []).append(graded.score)
    if len(scores) < 2:
        return ""
    return min(scores, key=lambda module: sum(scores[module]) / len(scores[module]))


def _quoted(text: str) -> Iterator[str]:
    """Any text as a block quote, its code fences and headings kept from the report's own."""
    for line in text.strip().splitlines():
        yield f"> {line}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
