"""What verification found, as data and as text."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong. `section` is the part of the question, such as `pseudocode` or `flow[2]`; a fault of the
    bank as a whole has no question."""

    question: str
    section: str
    message: str
    file: str = ""

    def __str__(self) -> str:
        place = " ".join(part for part in (self.file or self.question or "bank", self.section) if part)
        return f"{place}: {self.message}"


class Tally(msgspec.Struct):
    """What was checked, counted. Only the checks change it."""

    citations: int = 0  # quotes found at their lines in the pinned source
    external: int = 0  # quotes of repositories: hash and quote agree, the file was not fetched
    names: int = 0  # identifiers resolved
    declared: int = 0  # names and calls that the question declares as invented, foreign or a term
    edges: int = 0  # calls found in the source's call graph
    dynamic: int = 0  # calls declared as dynamic dispatch
    ordered: int = 0  # pairs of calls whose order the source allows
    fields: int = 0
    signatures: int = 0
    absent: int = 0  # false premises: names confirmed to be nowhere
    cited: int = 0  # sentences with a marker
    uncited: int = 0  # sentences that name code and have no marker of their own
    opinion: int = 0  # sentences without marker and without code

    @property
    def sentences(self) -> int:
        return self.cited + self.uncited + self.opinion


class QuestionReport(msgspec.Struct):
    """One question; `faults` is empty where everything holds."""

    id: str
    file: str
    level: int
    module: str
    tally: Tally
    faults: list[Fault]


class BankReport(msgspec.Struct):
    """A bank. `sources` says what each was checked against."""

    bank: str
    sources: dict[str, str]
    questions: list[QuestionReport]
    faults: list[Fault]

    @property
    def all_faults(self) -> list[Fault]:
        return [*self.faults, *(fault for question in self.questions for fault in question.faults)]

    @property
    def total(self) -> Tally:
        return add(question.tally for question in self.questions)


def add(tallies: Iterable[Tally]) -> Tally:
    counts = [msgspec.structs.asdict(tally) for tally in tallies]
    return Tally(**{name: sum(count[name] for count in counts) for name in Tally.__struct_fields__})


def tally_line(tally: Tally) -> str:
    """What is verified, what is declared, what is opinion."""
    parts = [
        (tally.citations, "quotes"), (tally.names, "names"), (tally.edges, "calls"), (tally.ordered, "orders"),
        (tally.fields, "fields"), (tally.signatures, "signatures"), (tally.absent, "absences"),
    ]  # fmt: skip
    verified = ", ".join(f"{count} {what}" for count, what in parts if count) or "nothing"
    aside = [
        (tally.external, "quotes not fetched"), (tally.dynamic, "dynamic calls declared"),
        (tally.declared, "names declared"),
    ]  # fmt: skip
    rest = "".join(f"; {count} {what}" for count, what in aside if count)
    return (
        f"verified {verified}{rest}; sentences: {tally.cited} cited, "
        f"{tally.uncited} on code without a marker of their own, {tally.opinion} opinion"
    )


def lines_of(report: BankReport) -> list[str]:
    """The report for the terminal."""
    lines = [f"{report.bank}: {len(report.questions)} questions"]
    lines += [f"  {source}: {against}" for source, against in report.sources.items()]
    for question in report.questions:
        mark = "ok  " if not question.faults else "FAIL"
        lines.append(f"{mark} {question.id} (level {question.level}, {question.module}): {tally_line(question.tally)}")
        lines += [f"     {fault}" for fault in question.faults]
    lines += [f"FAIL {fault}" for fault in report.faults]
    faults = len(report.all_faults)
    lines.append(f"{'ok' if not faults else f'{faults} faults'}; {tally_line(report.total)}")
    return lines
