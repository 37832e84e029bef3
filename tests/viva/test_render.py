"""A bank as Markdown and in the other forms: the published form, nothing lost, nothing let in."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import sqlite3
import zipfile
from pathlib import Path

import msgspec
import pytest

from tests.viva import garden
from viva.bank.load import Bank, load_bank
from viva.bank.schema import Question
from viva.cli import main
from viva.errors import BankError
from viva.render.export import ExportedBank, export, select
from viva.render.markdown import bank_markdown
from viva.render.page import bank_page

SHIPPED = Path(__file__).parents[2] / "banks" / "sglang-0.5.23"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> `<b>x</b>` \"'"


def spoiled() -> Bank:
    """The fixture bank with markup in every text that a page shows."""
    question = garden.question()
    answer = msgspec.structs.replace(
        question.answer,
        overview=f"{EVIL} [c1]",
        flow=(f"# {EVIL}", EVIL),
        tradeoffs=EVIL,
        pseudocode=msgspec.structs.replace(question.answer.pseudocode, text=f"# {EVIL}\n```\n# </code></pre>"),
    )
    citations = tuple(
        msgspec.structs.replace(each, quote=f"# {EVIL}\n</pre>", file='a"><script>.py') for each in question.citations
    )
    evil: Question = msgspec.structs.replace(question, title=EVIL, answer=answer, citations=citations)
    file = msgspec.structs.replace(garden.bank().file, title=EVIL)
    return msgspec.structs.replace(garden.bank(), questions=(evil,), file=file)


def test_markdown_is_the_published_form() -> None:
    """Red when a heading, an indent, a fence or the order of the seven changes."""
    golden = (garden.DATA / "garden.zh.md").read_text(encoding="utf-8")
    assert bank_markdown(garden.bank()) == golden


def test_every_question_of_the_shipped_bank_has_the_seven_headings_in_order() -> None:
    """Red when levels are out of order, or an answer's list is not the seven of the form."""
    text = bank_markdown(load_bank(SHIPPED))
    levels = re.findall(r"^## Level (\d)（.+）$", text, re.MULTILINE)
    assert levels == ["2", "3", "4", "5"]
    parts = re.split(r"^### 问题 (\d+)：.+$", text, flags=re.MULTILINE)
    assert parts[1::2] == [str(number) for number in range(1, len(parts) // 2 + 1)]
    for part in parts[2::2]:
        assert part.startswith("\n\n- 标准答案：\n")
        headings = re.findall(r"^  (\d)\. ([^：]+)：", part, re.MULTILINE)
        assert [number for number, _ in headings] == list("1234567")
        assert [name for _, name in headings[:4]] == [
            "高层解释",
            "核心伪代码",
            "控制流/数据流解析",
            "数据结构与内存布局",
        ]
        assert re.fullmatch(r"与 vLLM/(TensorRT-LLM|TGI)(/TGI)? 对比", headings[4][1])
        assert [name for _, name in headings[5:]] == ["性能 & 工程 trade-offs", "重构/演进方向"]
        assert re.search(r"控制流/数据流解析：1\. .+\n     → 2\. ", part)
        assert re.search(r"\n     ```python\n(.*#.*\n)?", part)


def test_markdown_of_a_hostile_text_stays_inside_its_item() -> None:
    """Red when a text of a bank can open a tag, a heading or end the fence it stands in."""
    lines = bank_markdown(spoiled()).split("\n")
    outside = [re.sub(r"`[^`]*`", "", line) for line in lines if not line.startswith("     #")]
    assert not [line for line in outside if re.search(r"(?<!\\)<(script|img)", line)]
    assert [line.split(" ")[0] for line in lines if line.startswith("#")] == ["#", "##", "###"]
    assert not [line for line in outside if re.match(r" +#{1,6} ", line)]
    assert "     ````python" in lines


def test_render_writes_beside_the_bank_and_check_notices_a_stale_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when CI could not notice a bank whose Markdown was not rendered again."""
    bank = garden.copied(tmp_path) / "bank"
    assert main(["render", str(bank), "--check"]) == 1
    assert main(["render", str(bank)]) == 0
    assert main(["render", str(bank), "--check"]) == 0
    (bank / "bank.zh.md").write_text("old", encoding="utf-8")
    assert main(["render", str(bank), "--check"]) == 1
    assert "stale" in capsys.readouterr().out


def test_the_html_file_needs_nothing_else_and_its_policy_allows_only_itself() -> None:
    """Red when the file loads something, or its own script or style is not what its policy names."""
    page = bank_page(garden.bank(), garden.bank().questions)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("served", [True, False])
def test_no_text_of_a_bank_becomes_markup(served: bool) -> None:
    """Red when one place forgets to escape."""
    bank = spoiled()
    page = bank_page(bank, bank.questions, link=(lambda citation: "/x") if served else None)
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<b>x</b>" not in page
    assert '"><script' not in page


def test_the_page_shows_every_section_and_quote() -> None:
    """Red when something a bank says is missing from its page."""
    page = bank_page(garden.bank(), garden.bank().questions)
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    question = garden.question()
    for citation in question.citations:
        assert citation.sha256 in text
        for line in citation.quote.split("\n"):
            assert line.strip() in text
    for point in question.rubric:
        assert point.point.replace("`", "") in text
    assert "POLICIES[]" in text
    assert 'data-n="28"' in page


def test_json_is_the_data_again() -> None:
    """Red when the export loses a field."""
    made = export(garden.bank(), garden.bank().questions, "json")
    back = msgspec.json.decode(made.data, type=ExportedBank)
    assert tuple(back.questions) == garden.bank().questions
    assert back.bank == garden.bank().file


def test_anki_package_has_a_note_a_question_and_keeps_its_identity(tmp_path: Path) -> None:
    """Red when Anki would take a corrected question for another one, or a field is empty."""
    pytest.importorskip("genanki")

    def notes(bank: Bank) -> list[tuple[str, str]]:
        with zipfile.ZipFile(io.BytesIO(export(bank, bank.questions, "anki").data)) as package:
            path = Path(package.extract("collection.anki2", tmp_path))
        return sqlite3.connect(path).execute("select guid, flds from notes").fetchall()

    [(guid, fields)] = notes(garden.bank())
    assert all(fields.split("\x1f"))
    changed = msgspec.structs.replace(garden.question(), title="另一个问法")
    [(again, _)] = notes(msgspec.structs.replace(garden.bank(), questions=(changed,)))
    assert again == guid
    [(_, hostile)] = notes(spoiled())
    assert "<script" not in hostile


def test_a_selection_keeps_the_numbers_and_an_unknown_question_is_named() -> None:
    """Red when question 5 alone is called 1, or a mistyped id exports everything."""
    bank = load_bank(SHIPPED)
    fifth = bank.questions[4]
    assert "### 问题 5：" in bank_markdown(bank, [fifth])
    assert [each.id for each in select(bank, [fifth.id])] == [fifth.id]
    with pytest.raises(BankError, match="no question nonsense"):
        select(bank, ["nonsense"])


@pytest.mark.parametrize("kind", ["md", "html", "anki", "json"])
def test_export_command_writes_each_format(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red when a format is offered and not written."""
    target = tmp_path / "out"
    assert main(["export", str(garden.DATA / "bank"), "--format", kind, "--output", str(target)]) == 0
    assert target.stat().st_size > 1000
    assert main(["export", str(garden.DATA / "bank"), "--format", kind, "--level", "2"]) == 2
    assert "no question is selected" in capsys.readouterr().err
