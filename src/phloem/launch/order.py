"""What a server tells a new engine, and how the engine's exit code is read. Light: the server imports it first."""

from __future__ import annotations

from pathlib import Path

import msgspec

from phloem.core.config import Config

EXIT_ENGINE, EXIT_CALLER = 1, 2


class Order(msgspec.Struct, frozen=True):
    """What the server tells a new engine. `model` is a path, or dummy:<name>; `name` is what the API calls it."""

    config: Config
    model: str
    name: str
    commands_address: str
    events_address: str

    def source(self) -> Path | str:
        """The model as build_engine wants it."""
        return self.model if self.model.startswith("dummy:") else Path(self.model)
