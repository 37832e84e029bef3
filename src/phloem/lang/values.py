"""Generated text as the value that a node wants."""

from __future__ import annotations

import json
from typing import Any

from phloem.lang.errors import UnparsableOutput
from phloem.lang.ir import Gen, Parse


def parse_text(text: str, kind: Parse) -> Any:
    """ValueError when `text` is not one."""
    match kind:
        case "text":
            return text
        case "json":
            return json.loads(text)
        case "integer":
            return int(text)
        case "number":
            return float(text)
        case "boolean":
            if text.strip().lower() not in ("true", "false"):
                raise ValueError("neither true nor false")
            return text.strip().lower() == "true"


def parsed(text: str, node: Gen, *, finish: str, place: str) -> Any:
    """The value of a generation. UnparsableOutput when the text is not of its kind."""
    try:
        return parse_text(text, node.parse)
    except (ValueError, RecursionError) as error:
        cut = f"; max_tokens={node.max_tokens} cut it off" if finish == "length" else ""
        message = f"{place}: {node.name!r} is not {node.parse}: {text[:80]!r}{cut}"
        raise UnparsableOutput(message, field=place) from error
