"""What a server tells a new engine, and how the engine's exit code is read. Light: the server imports it first."""

from __future__ import annotations

from pathlib import Path

import msgspec

from phloem.core.config import Config

EXIT_ENGINE, EXIT_CALLER = 1, 2
NULL_MODEL = "dummy:null"
"""A model without weights, for trying the server."""


class Order(msgspec.Struct, frozen=True):
    """What the server tells a new engine. `model` is a path, or dummy:<name>; `name` is what the API calls it."""

    config: Config
    model: str
    name: str
    commands_address: str
    events_address: str

    @property
    def has_weights(self) -> bool:
        """Whether the model computes anything; if not, its engine needs no torch."""
        return self.model != NULL_MODEL

    def source(self) -> Path | str:
        """The model as build_engine wants it."""
        return self.model if self.model.startswith("dummy:") else Path(self.model)
