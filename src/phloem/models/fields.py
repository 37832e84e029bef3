"""Configuration files, read with suspicion: every value has the type that was asked for, or a ModelError names it."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from phloem.core.errors import ModelError

MAX_SIZE = 1 << 24  # no dimension of a model is larger; keeps nonsense from being allocated
MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM, MAX_CONTEXT = 1024, 4096, 4096, 1 << 30


class Fields:
    """One JSON object or metadata table of the model at `path`."""

    def __init__(self, path: Path, values: dict[str, Any], *, prefix: str = "") -> None:
        self.path, self.values, self.prefix = path, values, prefix

    def __contains__(self, name: str) -> bool:
        return self.values.get(self.prefix + name) is not None

    def get(self, name: str) -> Any:
        """The value, or None where it is absent or null."""
        return self.values.get(self.prefix + name)

    def error(self, name: str, problem: str) -> ModelError:
        return ModelError(f"{self.path}: configuration field {self.prefix + name!r} {problem}", field=str(self.path))

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = MAX_SIZE) -> int:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise self.error(name, "is missing; the configuration is incomplete or of another kind of model")
        if type(value) is not int or not least <= value <= most:
            raise self.error(name, f"is {value!r}, expected an integer from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise self.error(name, "is missing; the configuration is incomplete or of another kind of model")
        if type(value) not in (int, float) or not isfinite(value) or value <= 0:
            raise self.error(name, f"is {value!r}, expected a positive number")
        return float(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(name, f"is {value!r}, expected true or false")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them; empty where absent."""
        value = self.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(item) is int and 0 <= item <= MAX_SIZE for item in ids):
            raise self.error(name, f"is {value!r}, expected a token id or a list of them")
        return tuple(ids)

    def table(self, name: str) -> Fields:
        """A nested object; empty where absent."""
        value = self.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, f"is {value!r}, expected an object")
        return Fields(self.path, value or {})
