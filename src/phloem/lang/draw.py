"""A program as a picture: SVG, one box a node, blocks inside the box of their node, branches side by side."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

from phloem.lang.ir import AnyNode, Call, Fork, Gen, If, Join, Map, Program, Select, SetVar, Turn, While
from phloem.lang.show import label
from phloem.lang.walk import blocks_of

CHAR_WIDTH, LINE_HEIGHT, PADDING, GAP = 7, 24, 8, 8
MAX_CHARS = 56
LIGHT = {"text": "#f4f4f1", "model": "#d9ead3", "branch": "#dbe7f6", "flow": "#fdebc8", "turn": "#ece3f3"}


@dataclass(frozen=True, slots=True)
class Box:
    """A drawn node or block: its size, and its SVG for a given corner."""

    width: int
    height: int
    parts: tuple[tuple[int, int, Box | str], ...]

    def svg(self, x: int, y: int) -> str:
        """Elements at (x, y)."""
        drawn = []
        for left, top, part in self.parts:
            inner = part.svg(x + left, y + top) if isinstance(part, Box) else part.format(x=x + left, y=y + top)
            drawn.append(inner)
        return "\n".join(drawn)


def show_svg(program: Program) -> str:
    """The picture as an SVG document."""
    box = _stack([_node(node) for node in program.body])
    width, height = box.width + 2 * GAP, box.height + 2 * GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="ui-monospace, monospace" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{box.svg(GAP, GAP)}\n</svg>\n'
    )


def _node(node: AnyNode) -> Box:
    title = label(node)
    shown = title if len(title) <= MAX_CHARS else title[: MAX_CHARS - 1] + "…"
    inner = [(name, _stack([_node(each) for each in block])) for name, block in blocks_of(node) if block]
    body = _body(node, inner)
    width = max(len(shown) * CHAR_WIDTH, body.width if body else 0) + 2 * PADDING
    height = LINE_HEIGHT + (body.height + PADDING if body else 0)
    # braces are doubled: every string goes through format
    text = escape(shown).replace("{", "{{").replace("}", "}}")
    frame = (
        f'<rect x="{{x}}" y="{{y}}" width="{width}" height="{height}" rx="5" fill="{LIGHT[_kind(node)]}" '
        'stroke="#777"/>'
    )
    caption = f'<text x="{{x}}" y="{{y}}">{text}</text>'
    parts: list[tuple[int, int, Box | str]] = [(0, 0, frame), (PADDING, 16, caption)]
    if body:
        parts.append((PADDING, LINE_HEIGHT, body))
    return Box(width, height, tuple(parts))


def _body(node: AnyNode, inner: list[tuple[str, Box]]) -> Box | None:
    """The blocks inside: what all say on top, branches and alternatives side by side."""
    if not inner:
        return None
    if not isinstance(node, Fork | If):
        return _stack([box for _, box in inner])
    top = [box for name, box in inner if name == "prefix"]
    beside = _row([box for name, box in inner if name != "prefix"])
    return _stack([*top, beside])


def _stack(boxes: list[Box]) -> Box:
    y, parts = 0, []
    for box in boxes:
        parts.append((0, y, box))
        y += box.height + GAP
    return Box(max((box.width for box in boxes), default=0), max(0, y - GAP), tuple(parts))


def _row(boxes: list[Box]) -> Box:
    x, parts = 0, []
    for box in boxes:
        parts.append((x, 0, box))
        x += box.width + GAP
    return Box(max(0, x - GAP), max((box.height for box in boxes), default=0), tuple(parts))


def _kind(node: AnyNode) -> str:
    match node:
        case Gen() | Select():
            return "model"
        case Fork() | Map() | Join():
            return "branch"
        case If() | While() | Call() | SetVar():
            return "flow"
        case Turn():
            return "turn"
        case _:
            return "text"
