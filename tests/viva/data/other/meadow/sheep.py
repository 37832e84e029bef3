"""Sheep water nothing; they eat."""

from __future__ import annotations


class Flock:
    size: int = 12

    def graze(self, hours: int) -> int:
        return self.size * hours
