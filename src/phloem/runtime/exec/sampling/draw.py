"""One draw from one row: a counter-based random number and the inverse of the cumulative distribution.

The number depends only on the request's seed and on how many tokens it has generated, so the same seed gives the same
tokens on any device row, in any batch, and after a preemption. Source: Philox4x32-10, Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
"""

from __future__ import annotations

import numpy as np

from phloem.runtime.exec.sampling.state import FloatRow
from phloem.runtime.exec.sampling.support import SUM_BLOCK, Support, block_sums

MASK_32 = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

Words = tuple[int, int, int, int]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: four random 32-bit words that are a pure function of counter and key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        left, right = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & MASK_32, (left >> 32) ^ c3 ^ k1, left & MASK_32
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK_32, (k1 + KEY_STEPS[1]) & MASK_32
    return c0, c1, c2, c3


def uniform(*, seed: int, num_generated: int) -> float:
    """The random number in [0, 1), 53 bits, of the token that follows `num_generated` tokens of a request."""
    counter = (num_generated & MASK_32, (num_generated >> 32) & MASK_32, 0, 0)
    high, low, _, _ = philox(counter, (seed & MASK_32, (seed >> 32) & MASK_32))
    return float(((high << 32) | low) >> 11) / float(1 << 53)


def draw(kept: Support, number: float) -> int:
    """The token id at `number` (in [0, 1)) of the cumulative distribution over `kept`, in id order."""
    weights = kept.weights
    start = 0
    if len(weights) <= SUM_BLOCK:
        mass = np.cumsum(weights, dtype=np.float64)
        wanted = number * float(mass[-1])
    else:
        blocks = np.cumsum(block_sums(weights), dtype=np.float64)
        wanted = number * float(blocks[-1])
        block = int(np.searchsorted(blocks, wanted, side="right"))
        start = block * SUM_BLOCK
        weights = weights[start : start + SUM_BLOCK]
        wanted -= float(blocks[block - 1]) if block else 0.0
        mass = np.cumsum(weights, dtype=np.float64)
    position = int(np.searchsorted(mass, wanted, side="right"))
    if position >= len(weights):  # the float32 block sum was a rounding error above the float64 one
        position = int(_last_possible(weights))
    return start + position if kept.ids is None else int(kept.ids[start + position])


def _last_possible(weights: FloatRow) -> int:
    return int(np.flatnonzero(weights)[-1])
