"""docs/lang.md: its code runs, and its pictures are those of its programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from phloem.lang.draw import show_svg
from phloem.lang.trace import ProgramFunction

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "lang.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[(\w+)\]\((images/lang/\w+\.svg)\)")


def test_the_code_runs_and_the_pictures_are_current(tmp_path: Path) -> None:
    """Red when a block of the page does not run, or a program's picture is not what `phloem program show --format svg`
    draws (write show_svg() there)."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for index, match in enumerate(BLOCK.finditer(PAGE)):
        path = tmp_path / f"block_{index}.py"
        path.write_text(match[1].replace("LLM()", 'LLM("dummy:null")'), encoding="utf-8")
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), namespace)
    namespace["llm"].close()
    programs = {name: value for name, value in namespace.items() if isinstance(value, ProgramFunction)}
    pictures = dict(PICTURE.findall(PAGE))
    assert len(pictures) == 6
    for name, file in pictures.items():
        assert (DOCS / file).read_text(encoding="utf-8") == show_svg(programs[name].trace()), name
