"""Where viva keeps what can be made again: wheels, indexes, sessions."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/viva, else ~/.cache/viva."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "viva"


def api_key() -> str | None:
    """$VIVA_API_KEY, for endpoints."""
    return os.environ.get("VIVA_API_KEY")
