"""The device's sampler against the host's (runtime/exec/sampling): same logits, parameters and seeds, same tokens.

Red when a rule keeps another head, ties go to higher ids, a random number differs, a line depends on its neighbours, or
what may not be sampled is.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from phloem.core.request import SamplingParams
from phloem.kernels.triton import packed
from phloem.kernels.triton.row_tensors import RowTensors
from phloem.kernels.triton.sample import CHUNK, sample
from phloem.kernels.triton.truncate import BLOCK
from phloem.runtime.exec.sampling.draw import uniform
from phloem.runtime.exec.sampling.support import support

ROUNDING = 1e-5  # of the whole weight: how near to an edge a number may fall on either side of it
NUM_PROMPT, NUM_KNOWN = 3, 8
INF, NAN = float("inf"), float("nan")


def store_of(params: list[SamplingParams], seeds: list[int], device: torch.device) -> RowTensors:
    """A row store whose row i has params[i] and seeds[i] and has generated 5 + i tokens."""
    store = RowTensors.empty(max_rows=len(params), max_model_len=NUM_KNOWN + len(params), max_pages=1, device=device)
    for row, (each, seed) in enumerate(zip(params, seeds, strict=True)):
        words = packed.sampling_words(
            temperature=each.temperature, top_k=each.top_k, top_p=each.top_p, min_p=each.min_p, seed=seed
        )
        store.sampling[row] = torch.tensor(words, dtype=torch.int32)
        store.known[row], store.num_prompt[row] = NUM_KNOWN + row, NUM_PROMPT
    return store


def is_right(logits: torch.Tensor, params: SamplingParams, number: float, token: int) -> bool:
    """Whether the host would draw `token` too, give or take rounding at the edges of tokens and of the nucleus."""
    row = logits.cpu().numpy()
    if params.is_greedy:
        return token == int(row.argmax())
    for top_p in (params.top_p, params.top_p - ROUNDING, params.top_p + ROUNDING):
        top_p = top_p if params.top_p < 1 else 1.0
        kept = support(row, SamplingParams(**{**as_dict(params), "top_p": min(1.0, top_p)}))
        ids = np.arange(len(row)) if kept.ids is None else kept.ids
        place = int(np.searchsorted(ids, token))
        if place < len(ids) and ids[place] == token and kept.weights[place] > 0:
            mass = np.cumsum(kept.weights, dtype=np.float64)
            mass /= mass[-1]
            start = mass[place - 1] if place else 0.0
            if start - ROUNDING <= number <= mass[place] + ROUNDING:
                return True
    return False


def as_dict(params: SamplingParams) -> dict[str, float]:
    return {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}


RULES = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.7),
    SamplingParams(temperature=0.9, top_k=1),
    SamplingParams(temperature=0.9, top_k=50),
    SamplingParams(temperature=0.9, top_k=5000),
    SamplingParams(temperature=1.0, top_k=1 << 30),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.3, top_p=0.999),
    SamplingParams(temperature=1.0, top_p=1e-6),
    SamplingParams(temperature=1.0, min_p=0.05),
    SamplingParams(temperature=1.0, min_p=1.0),
    SamplingParams(temperature=0.8, top_k=40, top_p=0.8, min_p=0.02),
    SamplingParams(temperature=2.0, top_k=3000, top_p=0.95),
    SamplingParams(temperature=1e-4, top_p=0.5),
]


def lines(kind: str, vocab_size: int, num_lines: int) -> torch.Tensor:
    """Logits: flat as of random weights, peaked as of a model, full of ties, or with most tokens impossible."""
    generator = torch.Generator().manual_seed(vocab_size)
    x = torch.randn(num_lines, vocab_size, generator=generator) * 2
    if kind == "peaked":
        x[:, :: max(1, vocab_size // 7)] += 14
    elif kind == "ties":
        x = x.round()
    elif kind == "masked":
        x[:, torch.rand(vocab_size, generator=generator) < 0.98] = -INF
        x[:, vocab_size // 2] = 0.5
    return x


@pytest.mark.parametrize("kind", ["flat", "peaked", "ties", "masked"])
@pytest.mark.parametrize("vocab_size", [1, 50, BLOCK, 3 * BLOCK + 1])
def test_tokens_are_the_hosts(device: torch.device, kind: str, vocab_size: int) -> None:
    logits = lines(kind, vocab_size, len(RULES)).to(device)
    seeds = [(row * 0x9E3779B97F4A7C15) % (1 << 64) for row in range(len(RULES))]
    store = store_of(RULES, seeds, device)
    line_rows = torch.arange(len(RULES), dtype=torch.int32, device=device)
    token_ids = sample(logits, line_rows, store)
    for row, (params, seed, token) in enumerate(zip(RULES, seeds, token_ids.tolist(), strict=True)):
        number = uniform(seed=seed, num_generated=NUM_KNOWN + row - NUM_PROMPT)
        assert is_right(logits[row], params, number, token), (row, params, token)
    assert store.known.tolist() == [NUM_KNOWN + row + 1 for row in range(len(RULES))]
    for row, token in enumerate(token_ids.tolist()):
        assert int(store.tokens[row, NUM_KNOWN + row]) == token


def test_random_numbers_are_philox(device: torch.device) -> None:
    """A flat line of 2^16 tokens turns a number's first 16 bits into its token: another counter or key shows."""
    seeds = [0, 1, (1 << 32) - 1, 1 << 32, (1 << 64) - 1, 0xDEADBEEF12345678]
    store = store_of([SamplingParams()] * len(seeds), seeds, device)
    logits = torch.zeros(len(seeds), 1 << 16, device=device)
    token_ids = sample(logits, torch.arange(len(seeds), dtype=torch.int32, device=device), store, truncates=False)
    numbers = [uniform(seed=seed, num_generated=NUM_KNOWN + row - NUM_PROMPT) for row, seed in enumerate(seeds)]
    assert token_ids.tolist() == [math.floor(number * (1 << 16)) for number in numbers]


def test_what_cannot_be_sampled(device: torch.device) -> None:
    """NaN, infinity and all minus infinity give -1 and append nothing, whatever the rule, as do lines without row."""
    bad = torch.randn(4, CHUNK + 5, generator=torch.Generator().manual_seed(1))
    bad[0, CHUNK + 2], bad[1, 7], bad[2] = NAN, INF, -INF
    for params in (RULES[0], RULES[1], RULES[7]):
        store = store_of([params] * 4, [1, 2, 3, 4], device)
        before = [tensor.clone() for tensor in (store.known, store.tokens)]
        token_ids = sample(bad.to(device), torch.tensor([0, 1, 2, -1], dtype=torch.int32, device=device), store)
        assert token_ids.tolist() == [-1] * 4
        assert torch.equal(store.known, before[0])
        assert torch.equal(store.tokens, before[1])


@pytest.mark.parametrize(("size", "edge"), [(CHUNK + 100, CHUNK), (3 * BLOCK, BLOCK)])
def test_ties_go_to_lower_ids(device: torch.device, size: int, edge: int) -> None:
    """Of equal logits top_k keeps the lower ids and greedy takes the lowest, over chunks and blocks too."""
    logits = torch.zeros(1, size)
    logits[0, edge - 2 :] = 3.0
    wide = torch.full((1, size + 100), NAN)
    wide[:, :size] = logits
    line_rows = torch.zeros(1, dtype=torch.int32, device=device)
    strided = wide.to(device)[:, :size]
    store = store_of([SamplingParams(temperature=0.0)], [0], device)
    assert sample(strided, line_rows, store, append=False).tolist() == [edge - 2]
    drawn = set()
    for seed in range(24):
        store = store_of([SamplingParams(top_k=4)], [seed], device)
        drawn.add(sample(strided, line_rows, store, append=False).item())
        assert store.known.tolist() == [NUM_KNOWN]  # append=False
    assert drawn == {edge - 2, edge - 1, edge, edge + 1}


@pytest.mark.parametrize("size", [50, 3 * BLOCK])
def test_ties_under_top_p(device: torch.device, size: int) -> None:
    """Of a line of equal logits, the first three reach two and a half tokens' weight: no fewer, no more."""
    num_lines = 24
    logits = torch.ones(num_lines, size, device=device)
    store = store_of([SamplingParams(top_p=2.5 / size)] * num_lines, list(range(num_lines)), device)
    token_ids = sample(logits, torch.arange(num_lines, dtype=torch.int32, device=device), store)
    assert set(token_ids.tolist()) == {0, 1, 2}


def test_a_line_does_not_depend_on_the_others(device: torch.device) -> None:
    """Any order of rows, any company: the same token."""
    logits = lines("flat", CHUNK + 77, len(RULES)).to(device)
    seeds = list(range(len(RULES)))
    everything = torch.arange(len(RULES), dtype=torch.int32, device=device)
    together = sample(logits, everything, store_of(RULES, seeds, device)).tolist()
    backwards = sample(logits.flip(0), everything.flip(0), store_of(RULES, seeds, device)).tolist()
    assert backwards == together[::-1]
    for row in (1, 8, 12):
        alone = sample(logits[row : row + 1], everything[row : row + 1], store_of(RULES, seeds, device))
        assert alone.tolist() == together[row : row + 1]


def test_a_full_row_stays_as_it_is(device: torch.device) -> None:
    """Red when an appended token could land in the next row."""
    store = RowTensors.empty(max_rows=2, max_model_len=3, max_pages=1, device=device)
    logits = torch.zeros(1, 9, device=device)
    logits[0, 5] = 1.0
    for _ in range(6):
        sample(logits, torch.zeros(1, dtype=torch.int32, device=device), store)
    assert store.tokens.tolist() == [[5, 5, 5, 5], [0, 0, 0, 0]]
    assert store.known.tolist() == [4, 0]
