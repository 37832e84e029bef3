"""The random number and the inverse CDF."""

from __future__ import annotations

import numpy as np
import pytest

from phloem.core.request import SamplingParams
from phloem.runtime.exec.sampling.draw import Words, draw, philox, uniform
from phloem.runtime.exec.sampling.support import Support, support


def chi_square_limit(degrees: int, deviations: float = 4.0) -> float:
    """The value a chi-square variable exceeds with probability 3e-5 (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + deviations * spread**0.5) ** 3)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; cells expected under 5 times are pooled."""
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    return float(((observed - expected)[used] ** 2 / expected[used]).sum()), int(used.sum()) - 1


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: Words, key: tuple[int, int], words: Words) -> None:
    """Red if a round, a multiplier or the key schedule changes: every seed would then give other tokens."""
    assert philox(counter, key) == words


@pytest.mark.parametrize("vary", ["position", "seed"])
def test_numbers_are_uniform_along_a_request_and_across_seeds(vary: str) -> None:
    """Red if neighbouring seeds or neighbouring tokens share their random number."""
    numbers = [
        uniform(seed=n, num_generated=0) if vary == "seed" else uniform(seed=1, num_generated=n) for n in range(20_000)
    ]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) >= 0
    assert max(numbers) < 1
    observed, _ = np.histogram(numbers, bins=100, range=(0, 1))
    statistic, degrees = chi_square(observed, np.full(100, 200.0))
    assert statistic < chi_square_limit(degrees)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_seeds_of_any_sign_and_size_are_accepted() -> None:
    """Red if a seed is no longer reduced to 64 bits."""
    assert uniform(seed=-1, num_generated=0) == uniform(seed=(1 << 64) - 1, num_generated=0)
    assert uniform(seed=1 << 40, num_generated=0) != uniform(seed=0, num_generated=0)


@pytest.mark.parametrize(
    ("vocab_size", "params"),
    [
        (40, SamplingParams()),
        (1000, SamplingParams()),
        (1000, SamplingParams(temperature=0.5)),
        (1000, SamplingParams(temperature=1.5, top_k=30)),
        (1000, SamplingParams(top_p=0.8)),
        (1000, SamplingParams(min_p=0.1, top_p=0.9, top_k=100)),
    ],
)
def test_draws_follow_the_distribution(vocab_size: int, params: SamplingParams) -> None:
    """Red if a block of the inverse CDF is skipped, a weight is used twice, or truncation forgets to renormalise."""
    logits = np.random.default_rng(7).standard_normal(vocab_size).astype(np.float32) * 2
    kept = support(logits, params)
    ids = np.arange(vocab_size) if kept.ids is None else kept.ids
    expected = np.zeros(vocab_size)
    expected[ids] = np.exp(logits[ids].astype(np.float64) / params.temperature)
    expected *= 20_000 / expected.sum()
    tokens = [draw(kept, uniform(seed=11, num_generated=n)) for n in range(20_000)]
    observed = np.bincount(tokens, minlength=vocab_size)
    assert not observed[expected == 0].any()
    statistic, degrees = chi_square(observed, expected)
    assert statistic < chi_square_limit(degrees)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000, 49_152])
def test_the_ends_of_the_interval_never_give_an_impossible_token(size: int) -> None:
    """Red if 0 or the largest number below 1 falls on a token of weight zero, or past the last one."""
    weights = np.random.default_rng(size).random(size, dtype=np.float32)
    possible = np.arange(size) % 3 == size // 2 % 3
    weights[~possible] = 0
    for number in (0.0, 1 - 2**-53, *np.linspace(0, 0.999, 50)):
        token = draw(Support(None, weights), float(number))
        assert possible[token]
    assert draw(Support(None, weights), 0.0) == np.flatnonzero(possible)[0]
    assert draw(Support(None, weights), 1 - 2**-53) == np.flatnonzero(possible)[-1]


def test_block_boundaries_agree_with_one_long_cumulative_sum() -> None:
    """Red if the offset of a block is off by one."""
    weights = np.random.default_rng(3).random(5_000, dtype=np.float32)
    mass = np.cumsum(weights, dtype=np.float64)
    checked = 0
    for number in np.random.default_rng(4).random(2_000):
        position = int(np.searchsorted(mass, number * mass[-1], side="right"))
        if np.abs(mass - number * mass[-1]).min() > 1e-3:
            assert draw(Support(None, weights), float(number)) == position
            checked += 1
    assert checked > 1_500
