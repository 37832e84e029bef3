"""What a section may look like, as a regular language: enforced token by token where the engine can, and checked again
here, because an endpoint may ignore it.

`told`: the model chooses among sentences that the index vouches for. `free`: Chinese prose, in which names come from
the pack's vocabulary alone and every sentence ends in a marker of the pack.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from viva.compose.draft import Place, plain_text
from viva.compose.skeleton import Skeleton

Style = Literal["told", "free"]

TERMS = (
    "KV cache",
    "block table",
    "prefill",
    "decode",
    "batch",
    "token",
    "GPU",
    "CPU",
    "vLLM",
    "TensorRT-LLM",
    "TGI",
    "page",
)
PROSE = "[\u4e00-\u9fff，、；：（）0-9 ]{1,24}"
SENTENCES = {"overview": (2, 5), "flow": (3, 6), "layout": (1, 4), "tradeoffs": (2, 6), "evolution": (1, 2)}
MARKERS = {"vllm": ("c4",), "second": ("c5",), "layout": ("c3",)}
LINES = ("flow", "evolution")  # a sentence a line


class Section(msgspec.Struct, frozen=True):
    """One piece of prose to be generated."""

    name: str
    instruction: str
    pattern: str
    max_tokens: int


def pattern_of(name: str, places: tuple[Place, ...], skeleton: Skeleton, style: Style) -> str:
    if style == "told":
        return "".join(f"({'|'.join(re.escape(one) for one in place)})" for place in places)
    cited = "|".join(MARKERS.get(name, tuple(item.id for item in skeleton.citations)))
    names = [*skeleton.names, *([skeleton.absent] if skeleton.absent else [])]
    pieces = "|".join([*(re.escape(f"`{one}`") for one in names), *(re.escape(term) for term in TERMS)])
    if name == "title":
        return f"({PROSE}|{pieces}){{2,12}}？"
    sentence = f"({PROSE}|{pieces}){{2,16}}。\\[({cited})\\]"
    least, most = SENTENCES.get(name, (1, 3))
    between = "\n" if name in LINES else ""
    return f"{sentence}({between}{sentence}){{{least - 1},{most - 1}}}"


def holds(section: Section, text: str) -> bool:
    return re.fullmatch(section.pattern, text) is not None


def max_tokens(places: tuple[Place, ...], style: Style) -> int:
    """Enough for the longest alternatives, at up to three tokens a character."""
    longest = sum(max(len(one) for one in place) for place in places)
    return 3 * longest + 64 if style == "told" else 900


def draft_of(places: tuple[Place, ...]) -> str:
    return plain_text(places)
