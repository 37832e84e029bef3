"""The prose of a question: sections, markers, and the names in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec

from viva.bank.schema import Question
from viva.verify.prose import Words, code_words, markers, paragraphs, sentences
from viva.verify.report import Tally
from viva.verify.scope import Scope

MIN_CHARS = 30  # of a section; less says nothing
ENVIRONMENT = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")

Say = Callable[[str, str], None]  # section, message


class Passage(msgspec.Struct, frozen=True):
    """A piece of prose. `needs_marker`: if it names code of a source, at least one marker must stand in it."""

    section: str
    text: str
    needs_marker: bool

    @property
    def asserts(self) -> bool:
        """Whether its sentences are the answer's; the question, the premise and the rubric only refer to it."""
        return not self.section.startswith(("title", "premise", "rubric"))


def passages(question: Question) -> Iterator[Passage]:
    """All prose of a question, in order."""
    answer = question.answer
    yield Passage("title", question.title, False)
    if question.premise is not None:
        yield Passage("premise.claim", question.premise.claim, False)
    for number, text in enumerate(paragraphs(answer.overview)):
        yield Passage(f"overview[{number}]", text, True)
    for number, text in enumerate(answer.flow):
        yield Passage(f"flow[{number}]", text, True)
    for number, text in enumerate(paragraphs(answer.layout)):
        yield Passage(f"layout[{number}]", text, True)
    for item in answer.comparison:
        yield Passage(f"comparison[{item.system}]", item.text, True)
    yield Passage("tradeoffs", answer.tradeoffs, False)
    for number, text in enumerate(answer.evolution):
        yield Passage(f"evolution[{number}]", text, False)
    for point in question.rubric:
        yield Passage(f"rubric[{point.id}]", point.point, False)


def check_prose(question: Question, scope: Scope, say: Say, tally: Tally) -> None:
    """Names resolve, markers lead to citations, what speaks of code carries one."""
    ids = {citation.id for citation in question.citations}
    for passage in passages(question):
        for marker in markers(passage.text):
            if marker not in ids:
                say(passage.section, f"[{marker}] is no citation of this question")
        skipped = passage.section in {f"comparison[{source}]" for source in scope.skipped}
        names_code = not skipped and _check_names(passage, scope, say, tally)
        if passage.needs_marker and names_code and not markers(passage.text):
            say(passage.section, "names code and has no marker: cite the lines that show it")
        for sentence in sentences(passage.text) if passage.asserts else ():
            _count(sentence, tally)
    _check_used(question, say)


def _count(sentence: str, tally: Tally) -> None:
    if markers(sentence):
        tally.cited += 1
    elif code_words(sentence):
        tally.uncited += 1
    else:
        tally.opinion += 1


def _check_names(passage: Passage, scope: Scope, say: Say, tally: Tally) -> bool:
    """Check each name of a passage; whether one of them is of a source."""
    words = code_words(passage.text)
    proposing = passage.section.startswith("evolution")
    for message in name_troubles(words, scope, proposing=proposing):
        say(passage.section, message)
    declared = [name for name in words.every if scope.is_declared(name, proposing=proposing)]
    tally.declared += len(declared)
    tally.names += len(words.every) - len(declared)
    return len(words.every) > len(declared)


def name_troubles(words: Words, scope: Scope, *, proposing: bool = False) -> Iterator[str]:
    """What does not resolve. `proposing`: the section may name what it proposes."""
    for flag in words.flags:
        if not scope.has_flag(flag) and not scope.is_declared(flag, proposing=proposing):
            yield f"no source has the flag {flag}"
    for path in words.paths:
        if not scope.has_path(path) and not scope.is_declared(path, proposing=proposing):
            yield f"no source has the file {path}"
    for chain in words.chains:
        if scope.is_declared(chain, proposing=proposing):
            continue
        trouble = scope.trouble_with(chain)
        if trouble and not (ENVIRONMENT.fullmatch(chain) and scope.has_string(chain)):
            yield f"{chain}: {trouble}"


def _check_used(question: Question, say: Say) -> None:
    used = {marker for passage in passages(question) for marker in markers(passage.text)}
    used |= {citation for point in question.rubric for citation in point.citations}
    for point in question.rubric:
        for citation in point.citations:
            if citation not in {item.id for item in question.citations}:
                say(f"rubric[{point.id}]", f"{citation} is no citation of this question")
    for item in question.citations:
        if item.id not in used:
            say(f"citations[{item.id}]", "no text has a marker to this citation")


def check_sections(question: Question, say: Say) -> None:
    """All seven sections are there and say something."""
    answer = question.answer
    count = len(paragraphs(answer.overview))
    if not 1 <= count <= 2:
        say("overview", f"{count} paragraphs; one or two are asked for")
    if len(answer.flow) < 2:
        say("flow", f"{len(answer.flow)} steps; a flow has at least 2")
    if not 1 <= len(answer.evolution) <= 2:
        say("evolution", f"{len(answer.evolution)} directions; one or two are asked for")
    texts = [("overview", answer.overview), ("layout", answer.layout), ("tradeoffs", answer.tradeoffs)]
    texts += [(f"evolution[{number}]", text) for number, text in enumerate(answer.evolution)]
    texts += [(f"comparison[{item.system}]", item.text) for item in answer.comparison]
    for section, text in texts:
        if len(re.sub(r"\s|\[c[0-9]+\]", "", text)) < MIN_CHARS:
            say(section, f"too short to say anything (less than {MIN_CHARS} characters)")
    for number, text in enumerate(answer.flow):
        if not re.sub(r"\W|\[c[0-9]+\]", "", text):
            say(f"flow[{number}]", "this step is empty")
    if not question.title.strip() or len(question.title.strip()) < 8:
        say("title", "no question")
