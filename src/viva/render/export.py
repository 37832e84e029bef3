"""A bank, or some of its questions, in another form: bytes with their file name and media type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from viva.bank.load import Bank
from viva.bank.schema import BankFile, Question
from viva.errors import BankError, VivaError
from viva.render.markdown import bank_markdown
from viva.render.page import FORMATS, bank_page


class Export(msgspec.Struct, frozen=True):
    """What a format is saved or sent as."""

    name: str
    media_type: str
    data: bytes


class ExportedBank(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The JSON form: the data of bank.yaml and of the questions, as docs/bank.schema.json describes them."""

    bank: BankFile
    questions: list[Question]


def select(bank: Bank, ids: Sequence[str]) -> list[Question]:
    """The questions of these ids in the bank's order; all without ids. An unknown id is a BankError."""
    unknown = sorted(set(ids) - {question.id for question in bank.questions})
    if unknown:
        raise BankError(f"{bank.folder} has no question {', '.join(unknown)}", field="id")
    return [question for question in bank.questions if not ids or question.id in ids]


def export(bank: Bank, questions: Sequence[Question], kind: str) -> Export:
    """`kind` is one of FORMATS."""
    stem = re.sub(r"[^\w.-]+", "-", bank.folder.resolve().name) or "bank"
    match kind:
        case "md":
            return Export(f"{stem}.md", "text/markdown; charset=utf-8", bank_markdown(bank, questions).encode())
        case "html":
            return Export(f"{stem}.html", "text/html; charset=utf-8", bank_page(bank, questions).encode())
        case "json":
            data = msgspec.json.encode(ExportedBank(bank=bank.file, questions=list(questions)))
            return Export(f"{stem}.json", "application/json", msgspec.json.format(data, indent=1) + b"\n")
        case "anki":
            return Export(f"{stem}.apkg", "application/octet-stream", _anki(bank, questions))
        case _:
            raise BankError(f"no format {kind!r}; there are {', '.join(FORMATS)}", field="format")


def _anki(bank: Bank, questions: Sequence[Question]) -> bytes:
    try:
        from viva.render.anki import write_anki
    except ModuleNotFoundError as error:
        raise VivaError(f"the Anki format needs {error.name}: pip install 'phloem[viva]'", field="format") from error
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bank.apkg"
        write_anki(bank, questions, path)
        return path.read_bytes()
