"""The folder of a run: a bank that grows, and beside it everything that was asked and said.

OUT/bank.yaml, OUT/questions/*.yaml     the bank: only verified questions; its title says so while it is incomplete
OUT/run/settings.json                   what the run was started with; another run does not go on from it
OUT/run/rounds/ID-N.json                each round: prompts, pattern, what was said, the verifier's faults
OUT/run/report.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from viva.bank.cite import citations_block
from viva.bank.load import load_bank
from viva.bank.schema import BankFile, Question
from viva.errors import BankError, VivaError

PARTIAL = "（不完整）"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


class RunFolder:
    """What is written is written whole: to another name first."""

    def __init__(self, out: Path, settings: dict[str, Any], file: BankFile) -> None:
        self.out, self._file = out, file
        known = out / "run" / "settings.json"
        text = msgspec.json.encode(settings).decode()
        if known.is_file() and known.read_text(encoding="utf-8") != text:
            raise VivaError(f"{out} holds a run with other settings; give another --out, or delete it", field="--out")
        if not known.is_file() and (out / "bank.yaml").exists():
            raise VivaError(f"{out} holds a bank that no run made; give another --out", field="--out")
        self._write(known, text)
        self.title(complete=False)

    def title(self, *, complete: bool) -> None:
        """Write bank.yaml."""
        file = msgspec.structs.replace(self._file, title=self._file.title + ("" if complete else PARTIAL))
        self._write(self.out / "bank.yaml", _dumped(msgspec.to_builtins(file)))

    def verified(self) -> dict[int, Question]:
        """The questions that an earlier run has finished, by number; a file that is broken is none of them."""
        try:
            bank = load_bank(self.out)
        except BankError as error:
            raise VivaError(f"{error.message}; delete that file to have it made again", field="--out") from error
        return {int(bank.paths[question.id].name[:2]): question for question in bank.questions}

    def keep(self, number: int, question: Question) -> None:
        self._write(self.out / "questions" / f"{number:02d}-{question.id}.yaml", question_yaml(question))

    def note(self, name: str, what: dict[str, Any]) -> None:
        self._write(self.out / "run" / name, msgspec.json.format(msgspec.json.encode(what), indent=1).decode() + "\n")

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{path.name}.new")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            raise VivaError(f"{path}: cannot be written: {error.strerror}", field="--out") from error


def question_yaml(question: Question) -> str:
    """The question as a file of a bank."""
    plain = msgspec.to_builtins(question)
    del plain["citations"]
    later = {name: plain.pop(name) for name in ("answer", "rubric", "terms") if name in plain}
    return _dumped(plain) + "\n".join(citations_block(question.citations)) + "\n" + _dumped(later)


def _dumped(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=120))
