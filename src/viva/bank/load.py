"""A bank from its folder."""

from __future__ import annotations

from pathlib import Path

import msgspec

from viva.bank.schema import BankFile, Question, Source
from viva.bank.yaml_text import read_yaml
from viva.errors import BankError


class Bank(msgspec.Struct, frozen=True, kw_only=True):
    """`questions` in the order of levels, then file names; `paths` has the file of each question, by its id."""

    folder: Path
    file: BankFile
    questions: tuple[Question, ...]
    paths: dict[str, Path]

    @property
    def subject(self) -> Source:
        return next(source for source in self.file.sources if source.role == "subject")

    def source(self, source_id: str) -> Source | None:
        return next((source for source in self.file.sources if source.id == source_id), None)


def load_bank(folder: Path) -> Bank:
    """Read bank.yaml and questions/*.yaml. Anything malformed is a BankError that names file, line and field."""
    if not folder.is_dir():
        raise BankError(
            f"{folder}: no such folder; a bank is a folder with bank.yaml and questions/", field=str(folder)
        )
    file = _load_file(folder)
    questions: list[Question] = []
    paths: dict[str, Path] = {}
    for path in sorted((folder / "questions").glob("*.yaml")):
        question = read_yaml(path, Question)
        _check_question(path, question, file)
        if question.id in paths:
            raise BankError(f"{path}: the id {question.id!r} is also that of {paths[question.id]}", field="id")
        paths[question.id] = path
        questions.append(question)
    questions.sort(key=lambda question: question.level)
    return Bank(folder=folder, file=file, questions=tuple(questions), paths=paths)


def load_sources(folder: Path) -> dict[str, Source]:
    """The sources of a bank by their ids, without its questions."""
    return {source.id: source for source in _load_file(folder).sources}


def _load_file(folder: Path) -> BankFile:
    file = read_yaml(folder / "bank.yaml", BankFile)
    _check_sources(folder / "bank.yaml", file)
    return file


def _check_sources(path: Path, file: BankFile) -> None:
    ids = [source.id for source in file.sources]
    if len(ids) != len(set(ids)):
        raise BankError(f"{path}: sources: an id stands twice", field="sources")
    if [source.role for source in file.sources].count("subject") != 1:
        raise BankError(f"{path}: sources: exactly one has `role: subject`", field="sources")
    for source in file.sources:
        kinds = [bool(source.package and source.version), bool(source.tree), bool(source.repository and source.commit)]
        if kinds.count(True) != 1:
            raise BankError(
                f"{path}: source {source.id!r}: give `package` and `version`, or `tree`, or `repository` and `commit`",
                field="sources",
            )
        if source.checked != (not source.repository):
            raise BankError(
                f"{path}: source {source.id!r}: `checked: false` belongs to repositories, and to every one of them",
                field="sources",
            )
        if source.role == "subject" and source.repository:
            raise BankError(f"{path}: source {source.id!r}: the subject must be a package or a tree", field="sources")


def _check_question(path: Path, question: Question, file: BankFile) -> None:
    if (question.kind == "false-premise") != (question.premise is not None):
        raise BankError(f"{path}: `premise` belongs to `kind: false-premise`, and only to it", field="premise")
    ids = [citation.id for citation in question.citations]
    for citation in question.citations:
        if ids.count(citation.id) > 1:
            raise BankError(f"{path}: citations: {citation.id} stands twice", field="citations")
        if citation.source not in {source.id for source in file.sources}:
            raise BankError(
                f"{path}: citations: {citation.id}: no source {citation.source!r} in bank.yaml", field="citations"
            )
        if citation.lines[1] < citation.lines[0]:
            raise BankError(
                f"{path}: citations: {citation.id}: lines {list(citation.lines)} run backwards", field="lines"
            )
