"""What W1 asks for: prompts, output lengths, temperature."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Requests that are sent at once."""

    prompts: list[tuple[int, ...]]
    lengths: list[int]
    temperature: float = 0.6


def w1(seed: int) -> Work:
    """256 prompts of U[100, 1024] ids in [0, 10000], outputs of U[100, 1024] tokens, as published."""
    chance = random.Random(seed)
    prompts = [tuple(chance.randint(0, 10000) for _ in range(chance.randint(100, 1024))) for _ in range(256)]
    return Work(prompts, [chance.randint(100, 1024) for _ in range(256)])
