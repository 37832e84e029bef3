"""Which line of the author's file is being traced."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import NamedTuple

from phloem.lang.errors import TraceError

_OURS = (str(Path(__file__).parent), contextlib.__file__)


class Where(NamedTuple):
    """A file and a line of it."""

    file: str
    line: int

    @property
    def short(self) -> str:
        """As nodes carry it: without the folder."""
        return f"{Path(self.file).name}:{self.line}"


def where() -> Where:
    """The innermost line that is not ours."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_OURS) and frame.f_back is not None:
        frame = frame.f_back
    return Where(frame.f_code.co_filename, frame.f_lineno)


def trace_error(message: str, *, at: Where | None = None) -> TraceError:
    """What cannot be captured, where, and what to write instead."""
    place = at or where()
    return TraceError(f"{place.file}:{place.line}: {message}", field=place.short)
