"""Orders in which plants are watered."""

from __future__ import annotations

from collections.abc import Callable


class Fifo:
    def order(self, plants: list[str]) -> list[str]:
        return list(plants)


class Alphabetic:
    def order(self, plants: list[str]) -> list[str]:
        return sorted(plants)


POLICIES: dict[str, Callable[[], Fifo | Alphabetic]] = {"fifo": Fifo, "alphabetic": Alphabetic}


def make_policy(name: str) -> Fifo | Alphabetic:
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name}")
    return POLICIES[name]()
