"""Python source as HTML: one string a line, its spans closed at the line's end."""

from __future__ import annotations

import html
from collections.abc import Sequence

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

CODE_SUFFIXES = (".py", ".pyi")


def highlighted(text: str, *, name: str = "code.py") -> list[str]:
    """The lines of a text, coloured if its name is that of a Python file, escaped in any case."""
    if not name.endswith(CODE_SUFFIXES):
        return [html.escape(line) for line in text.split("\n")]
    formatter = HtmlFormatter(nowrap=True, classprefix="t-")
    marked: str = highlight(text, PythonLexer(stripnl=False, ensurenl=False), formatter)
    return marked.removesuffix("\n").split("\n")


def numbered(lines: Sequence[str], *, first: int, hit: tuple[int, int] | None = None, anchors: bool = False) -> str:
    """Lines of HTML with their numbers in the file; those within `hit` are marked."""
    parts = []
    for number, line in enumerate(lines, start=first):
        classes = "line hit" if hit and hit[0] <= number <= hit[1] else "line"
        anchor = f' id="L{number}"' if anchors else ""
        parts.append(f'<span class="{classes}" data-n="{number}"{anchor}>{line}\n</span>')
    return "".join(parts)
