"""`verify`: a bank and its sources to a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from viva.bank.load import Bank
from viva.bank.schema import Question
from viva.errors import SourceError
from viva.index.build import Build, build_index, open_source
from viva.index.resolve import Resolver
from viva.index.trees import Trees
from viva.verify.claims import check_prose, check_sections
from viva.verify.members import check_field, check_signature
from viva.verify.premise import present
from viva.verify.pseudocode import check_pseudocode
from viva.verify.quotes import check_citation, doubled_spans, external_sources
from viva.verify.report import BankReport, Fault, QuestionReport, Tally
from viva.verify.scope import Scope
from viva.verify.shape import check_bank, check_citing, check_comparison


def open_sources(
    bank: Bank, *, cache: Path, build: Build = build_index, skip: Collection[str] = ()
) -> dict[str, Resolver]:
    """The index of each source that is fetched, by its id; those of `skip` are not."""
    fetched = [source for source in bank.file.sources if not source.repository and source.id not in skip]
    return {
        source.id: Resolver(open_source(source, bank_folder=bank.folder, cache=cache, build=build))
        for source in fetched
    }


class Verifier:
    """Checks questions against indexed sources. A question alone can be checked with `question`."""

    def __init__(self, bank: Bank, resolvers: Mapping[str, Resolver]) -> None:
        self._bank, self._resolvers = bank, resolvers
        if bank.subject.id not in resolvers:
            raise SourceError(f"the subject {bank.subject.id!r} is not indexed", field=bank.subject.id)
        fetched = [source.id for source in bank.file.sources if not source.repository]
        self._skipped = [source for source in fetched if source not in resolvers]
        self._trees = {source: Trees(resolver) for source, resolver in resolvers.items()}

    def bank(self) -> BankReport:
        """Every question, and the bank as a whole."""
        faults: list[Fault] = []
        check_bank(self._bank, lambda section, message: faults.append(Fault("", section, message)))
        reports = [self.question(question) for question in self._bank.questions]
        for question_id, citation, message in doubled_spans(self._bank):
            report = next(report for report in reports if report.id == question_id)
            report.faults.append(Fault(question_id, f"citations[{citation}]", message, report.file))
        sources = {source: resolver.store.name for source, resolver in self._resolvers.items()}
        external = {name: text for name, text in external_sources(self._bank).items() if name not in sources}
        return BankReport(str(self._bank.folder), {**sources, **external}, reports, faults)

    def question(self, question: Question) -> QuestionReport:
        """One question by itself: everything but what concerns several questions."""
        path = self._bank.paths.get(question.id)
        file = f"questions/{path.name}" if path else question.id
        report = QuestionReport(question.id, file, question.level, question.module, Tally(), [])

        def say(section: str, message: str) -> None:
            report.faults.append(Fault(question.id, section, message, file))

        subject = self._bank.subject.id
        scope = Scope(question, self._resolvers, subject=subject, terms=self._bank.file.terms, skipped=self._skipped)
        check_sections(question, say)
        check_citing(question, self._bank, say)
        check_comparison(question, self._bank, say)
        for citation in question.citations:
            resolver = self._resolvers.get(citation.source)
            trouble = check_citation(citation, resolver)
            if trouble:
                say(f"citations[{citation.id}]", trouble)
            elif resolver is None:
                report.tally.external += 1
            else:
                report.tally.citations += 1
        check_prose(question, scope, say, report.tally)
        for line, message in check_pseudocode(question, scope, self._trees, report.tally):
            say(f"pseudocode:{line}", message)
        self._members(question, scope, report)
        self._premise(question, report)
        return report

    def _members(self, question: Question, scope: Scope, report: QuestionReport) -> None:
        subject = self._bank.subject.id
        for field in question.answer.fields:
            source = field.source or subject
            resolver = self._resolvers.get(source)
            cited = scope.cited.get(source, [])
            trouble = check_field(field, resolver, cited=cited) if resolver else _unknown(source)
            self._note(trouble, f"fields[{field.owner}.{field.name}]", report)
            report.tally.fields += trouble is None
        for claim in question.answer.signatures:
            source = claim.source or subject
            resolver = self._resolvers.get(source)
            trouble = (
                check_signature(claim, resolver, cited=scope.cited.get(source, [])) if resolver else _unknown(source)
            )
            self._note(trouble, f"signatures[{claim.symbol}]", report)
            report.tally.signatures += trouble is None

    def _premise(self, question: Question, report: QuestionReport) -> None:
        for name in question.premise.absent if question.premise else ():
            where = present(name, self._resolvers[self._bank.subject.id])
            self._note(f"{name!r} is in the source after all: {where}" if where else None, "premise.absent", report)
            report.tally.absent += where is None

    def _note(self, trouble: str | None, section: str, report: QuestionReport) -> None:
        if trouble:
            report.faults.append(Fault(report.id, section, trouble, report.file))


def _unknown(source: str) -> str:
    return f"no checked source {source!r}"
