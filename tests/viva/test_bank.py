"""Banks on disk: loading, its messages, and citations written into a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.viva import garden
from viva.bank.cite import citations_block, fill_citations, quote_hash
from viva.bank.load import load_bank
from viva.bank.schema import Citation, Question, published_schema
from viva.bank.yaml_text import parse_yaml, read_yaml
from viva.errors import BankError, LookupFailed

QUESTION = garden.DATA / "bank" / "questions" / "01-pause.yaml"
SCHEMA = Path(__file__).parent.parent.parent / "docs" / "bank.schema.json"


def test_the_published_schema_is_that_of_the_structs() -> None:
    """Red when the form changes and docs/bank.schema.json does not: write it again (README of src/viva/bank)."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == published_schema()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("level: 4", "level: 6", r"01-pause.yaml:2: level: Invalid enum value 6; docs/bank.schema.json lists"),
        ("level: 4", "levle: 4", r"unknown field `levle`"),
        ("level: 4", "level: 4\nlevel: 5", r"01-pause.yaml:3: the key 'level' stands here twice"),
        ("level: 4", "level: [4", r"01-pause.yaml:\d+: no valid YAML"),
        ("weight: 2", "weight: two", r"01-pause.yaml:\d+: rubric\[0\].weight: Expected `int`"),
        ("- id: c2", "- id: c1", "c1 stands twice"),
        ("source: garden\n  file: garden/c", "source: gardn\n  file: garden/c", "no source 'gardn' in bank.yaml"),
        ("lines: [28, 42]", "lines: [42, 28]", "run backwards"),
        ("kind: false-premise", "kind: ordinary", "`premise` belongs to"),
        ("- {id: r3, ", "- {id: x3, ", r"rubric\[2\].id"),
    ],
)  # fmt: skip
def test_malformed_questions_are_told_with_file_line_and_field(tmp_path: Path, old: str, new: str, said: str) -> None:
    """Red when a malformed question is accepted, or the message does not lead to the line."""
    folder = garden.copied(tmp_path) / "bank"
    path = folder / "questions" / "01-pause.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BankError, match=said):
        load_bank(folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("role: subject", "role: comparison", "exactly one has `role: subject`"),
        ("{id: meadow, tree: ../other", "{id: meadow", "give `package` and `version`, or `tree`"),
        ("checked: false", "checked: true", "`checked: false` belongs to repositories"),
        ("id: meadow", "id: garden", "an id stands twice"),
        ("viva-bank/1", "viva-bank/2", "bank.yaml:1: schema"),
    ],
)  # fmt: skip
def test_malformed_bank_files_are_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    """Red when sources that contradict themselves are accepted."""
    folder = garden.copied(tmp_path) / "bank"
    text = (folder / "bank.yaml").read_text(encoding="utf-8")
    (folder / "bank.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BankError, match=said):
        load_bank(folder)


def test_missing_empty_and_binary_files_are_bank_errors(tmp_path: Path) -> None:
    """Red when one of them is a traceback."""
    with pytest.raises(BankError, match="no such folder"):
        load_bank(tmp_path / "nowhere")
    with pytest.raises(BankError, match="cannot be read"):
        load_bank(tmp_path)
    (tmp_path / "bank.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BankError, match="cannot be read"):
        load_bank(tmp_path)
    for text in ("", "- a\n- b\n", "just words", "a: !!python/object:os.system x\n", "a: &a [*a]\n", "d: 2020-99-99\n"):
        (tmp_path / "bank.yaml").write_text(text)
        with pytest.raises(BankError):
            load_bank(tmp_path)


# --- citations ---

AWKWARD = [
    "    indented\n\n  less\n",
    "trailing spaces   \nend",
    "tab\tinside",
    "'quotes' \"double\" \\back: # no comment",
    "form\x0cfeed and \u2028 separator",
    "emoji \U0001f331 中文",
    "- looks: like yaml",
    "   only\n  \n last",
]


@pytest.mark.parametrize("quote", [text.strip("\n") for text in AWKWARD])
def test_any_quote_survives_being_written(quote: str) -> None:
    """Red when YAML changes a single character of a quote."""
    citation = Citation(id="c1", source="s", file="a/b.py", lines=(1, 2), sha256=quote_hash(quote), quote=quote)
    text = "\n".join(citations_block([citation]))
    assert parse_yaml(text, dict, name="x")["citations"][0]["quote"] == quote


def test_cite_fills_only_the_citations(tmp_path: Path) -> None:
    """Red when cite rewrites anything else of the file, or forgets what follows the block."""
    path = tmp_path / "q.yaml"
    text = QUESTION.read_text(encoding="utf-8")
    begin, end = text.index("citations:\n"), text.index("answer:\n")
    short = "citations:\n- {id: c1, source: garden, file: garden/base.py, lines: [2, 3]}\n\n# a comment\n"
    path.write_text(text[:begin] + short + text[end:], encoding="utf-8")
    assert fill_citations(path, lambda _: ["x", "  y", "z"]) == 1
    written = path.read_text(encoding="utf-8")
    assert written.startswith(text[:begin])
    assert written.endswith("\n\n# a comment\n" + text[end:])
    assert read_yaml(path, Question).citations[0].quote == "  y\nz"
    assert fill_citations(path, lambda _: []) == 0


def test_cite_keeps_a_quote_unless_its_lines_moved_on_purpose(tmp_path: Path) -> None:
    """Red when cite silently quotes what happens to stand at the lines now."""
    path = tmp_path / "q.yaml"
    path.write_text(QUESTION.read_text(encoding="utf-8"), encoding="utf-8")
    assert fill_citations(path, lambda _: ["new"] * 99) == 0
    assert fill_citations(path, lambda _: ["new"] * 99, move=True) == 7
    assert read_yaml(path, Question).citations[0].quote == "\n".join(["new"] * 15)


def test_cite_follows_a_quote_that_moved(tmp_path: Path) -> None:
    """Red when lines put above a quote leave its citation behind, or a quote that is gone gets other lines."""
    path = tmp_path / "q.yaml"
    path.write_text(QUESTION.read_text(encoding="utf-8"), encoding="utf-8")
    before = read_yaml(path, Question).citations[0]
    moved = ["new"] * (before.lines[0] + 4) + before.quote.split("\n")
    assert fill_citations(path, lambda _: moved, follow=[before.source]) == 1
    after = read_yaml(path, Question).citations[0]
    assert after.lines == (before.lines[0] + 5, before.lines[1] + 5)
    assert (after.quote, after.sha256) == (before.quote, before.sha256)
    assert fill_citations(path, lambda _: moved, follow=["meadow"]) == 0


def test_cite_refuses_lines_outside_the_file_and_blank_ends(tmp_path: Path) -> None:
    """Red when a citation can be of nothing."""
    path = tmp_path / "q.yaml"
    path.write_text(QUESTION.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(LookupFailed, match=r"q.yaml: c1: lines 28-42 are outside garden/engine.py, which has 3 lines"):
        fill_citations(path, lambda _: ["a", "b", "c"], move=True)
    with pytest.raises(LookupFailed, match="begins or ends with an empty line"):
        fill_citations(path, lambda _: [""] * 99, move=True)
