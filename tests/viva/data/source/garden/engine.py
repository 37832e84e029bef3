"""A gardener that waters in batches."""

from __future__ import annotations

import os

from garden.base import Worker
from garden.cache import Shed, Tool
from garden.policy import make_policy

MAX_PLANTS = 4 * 16
PATIENCE = int(os.environ.get("GARDEN_PATIENCE", "3"))


class Gardener(Worker):
    """Takes plants, waters them, remembers what was done."""

    retries: int = 2

    def __init__(self, shed: Shed, policy_name: str = "fifo") -> None:
        super().__init__(name="gardener")
        self.shed = shed
        self.waiting: list[str] = []
        self.done: dict[str, int] = {}
        self.policy = make_policy(policy_name)
        self._paused = False

    def run(self, rounds: int = 1) -> int:
        total = 0
        for _ in range(rounds):
            self.receive()
            if self._paused:
                self.rest()
                continue
            batch = self.next_batch()
            if batch:
                watered = self.water(batch)
                self.record(batch, watered)
                total += watered
            else:
                self.tidy()
        return total

    def receive(self) -> None:
        self.waiting.extend(self.poll())

    def next_batch(self) -> list[str]:
        ordered = self.policy.order(self.waiting)
        batch = ordered[:MAX_PLANTS]
        self.waiting = ordered[MAX_PLANTS:]
        return batch

    def water(self, batch: list[str]) -> int:
        assert len(batch) <= MAX_PLANTS, "a batch fits the can"
        tool = self.shed.take(len(batch))
        try:
            return self.pour(tool, batch)
        except OverflowError as error:
            self.shed.give_back(tool)
            raise RuntimeError("the can is empty") from error

    def pour(self, tool: Tool, batch: list[str]) -> int:
        amount = min(tool.size, len(batch))
        self.shed.give_back(tool)
        return amount

    def record(self, batch: list[str], watered: int) -> None:
        for plant in batch[:watered]:
            self.done[plant] = self.done.get(plant, 0) + 1

    def tidy(self) -> None:
        self.shed.sort()
