"""Another version of the fixture's source."""

from __future__ import annotations

from pathlib import Path

from tests.viva import garden
from viva.index.resolve import Resolver
from viva.verify.drift import QuestionDrift, drift


def drifted(tmp_path: Path, file: str, old: str, new: str) -> QuestionDrift:
    """The question against a source in which one thing was changed."""
    root = garden.copied(tmp_path) / "source"
    text = (root / file).read_text(encoding="utf-8")
    assert old in text
    (root / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    other = Resolver(garden.indexed(root, tmp_path / "cache"))
    return drift(garden.bank(), "garden", pinned=garden.resolvers(), other=other)[0]


def fates(result: QuestionDrift) -> dict[str, str]:
    return {item.citation.id: item.fate for item in result.citations}


def test_the_same_source_makes_nothing_stale(tmp_path: Path) -> None:
    """Red when drift is found where nothing changed."""
    result = drifted(tmp_path, "garden/policy.py", "in which plants", "in which plants")
    assert (result.is_stale, set(fates(result).values())) == (False, {"same"})


def test_lines_that_moved_are_found_and_not_stale(tmp_path: Path) -> None:
    """Red when new lines above a citation make it stale, or its new place is wrong."""
    result = drifted(tmp_path, "garden/engine.py", "MAX_PLANTS", "# one\n# two\nMAX_PLANTS")
    assert fates(result) == {"c1": "moved", "c2": "moved", "c3": "same", "c4": "same", "c7": "same"}
    assert [item.lines for item in result.citations][:2] == [(30, 44), (55, 62)]
    assert not result.is_stale


def test_a_changed_line_is_shown_with_the_sentences_that_rest_on_it(tmp_path: Path) -> None:
    """Red when a reader is not told which sentences to look at again."""
    result = drifted(tmp_path, "garden/engine.py", "if self._paused:", "if self._paused and self.waiting:")
    changed = result.citations[0]
    assert changed.fate == "changed"
    assert [line.strip("+- ") for line in changed.diff] == ["if self._paused:", "if self._paused and self.waiting:"]
    sections = [section for section, _ in result.stale]
    assert "overview[0]" in sections
    assert "layout[0]" not in sections
    assert result.broken == ()


def test_a_renamed_method_breaks_calls_and_its_citation(tmp_path: Path) -> None:
    """Red when a call that is gone, or a definition that is gone, is not noticed."""
    result = drifted(tmp_path, "garden/engine.py", "def water(", "def sprinkle(")
    assert fates(result)["c2"] == "vanished"
    assert any("Gardener.water" in text or "'water'" in text for text in result.broken)
    assert any("signatures[Gardener.water]" in text for text in result.broken)


def test_calls_in_another_order_break_the_pseudocode(tmp_path: Path) -> None:
    """Red when only names are compared."""
    rest = "            if self._paused:\n                self.rest()\n                continue\n"
    receive, batch = "            self.receive()\n", "            batch = self.next_batch()\n"
    result = drifted(tmp_path, "garden/engine.py", receive + rest + batch, rest + batch + receive)
    assert any("never calls them in this order" in text for text in result.broken)
