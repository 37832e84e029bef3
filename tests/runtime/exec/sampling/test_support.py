"""Truncation against a plain sort in float64, and against transformers' warpers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from phloem.core.request import SamplingParams
from phloem.runtime.exec.sampling.support import largest, support

NEAR = 1e-5


def reference(logits: np.ndarray, params: SamplingParams) -> tuple[list[int], float]:
    """Kept ids by the definitions, and how far the nearest decision was from going the other way."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    order = sorted(range(len(logits)), key=lambda token_id: (-float(logits[token_id]), token_id))
    margin = 1.0
    if params.min_p > 0:
        margin = min(margin, float(np.abs(weights - params.min_p).min()) if params.min_p < 1 else 1.0)
        order = [token_id for token_id in order if weights[token_id] >= params.min_p]
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1:
        shares = weights[order] / weights[order].sum()
        before = np.cumsum(shares) - shares
        margin = min(margin, float(np.abs(before[1:] - params.top_p).min(initial=1.0)))
        order = [token_id for token_id, mass in zip(order, before, strict=True) if mass < params.top_p] or order[:1]
    return sorted(order), margin


def kept_ids(logits: np.ndarray, params: SamplingParams) -> list[int]:
    kept = support(logits, params)
    return list(range(len(logits))) if kept.ids is None else kept.ids.tolist()


@settings(max_examples=300, deadline=None)
@given(
    size=st.sampled_from([1, 2, 5, 64, 300, 1024, 5000]),
    seed=st.integers(0, 2**32),
    steps_per_unit=st.sampled_from([1, 4, 100_000]),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 50, 700, 10_000]),
    top_p=st.sampled_from([1e-6, 0.2, 0.7, 0.95, 0.9999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_kept_tokens_are_those_of_the_definitions(
    size: int, seed: int, steps_per_unit: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Red if a bound misses a token, a tie goes to a higher id, or the order of the rules changes.

    Coarse steps make ties.
    """
    logits = np.random.default_rng(seed).standard_normal(size) * spread
    logits = (np.round(logits * steps_per_unit) / steps_per_unit).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected, margin = reference(logits, params)
    assume(margin > NEAR)
    assert kept_ids(logits, params) == expected


@settings(max_examples=200, deadline=None)
@given(
    size=st.sampled_from([1, 7, 1000, 2048, 20_000]),
    count=st.sampled_from([1, 2, 10, 128, 1000, 50_000]),
    seed=st.integers(0, 2**32),
    levels=st.sampled_from([1, 3, 50, 1_000_000]),
)
def test_largest_is_the_head_of_a_stable_sort(size: int, count: int, seed: int, levels: int) -> None:
    """Red if the group bound drops one of the k largest, or if ties are not resolved to the lowest id."""
    values = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    expected = np.sort(np.argsort(-values, kind="stable")[:count])
    assert largest(values, count).tolist() == expected.tolist()


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("spread", [0.0, 0.5, 6.0])
def test_nucleus_of_a_large_vocabulary(top_p: float, spread: float) -> None:
    """Red if the search among likely tokens accepts too small a set: flat rows need nearly the whole vocabulary."""
    logits = (np.random.default_rng(1).standard_normal(151_936) * spread).astype(np.float32)
    params = SamplingParams(top_p=top_p)
    expected, _ = reference(logits, params)
    kept = kept_ids(logits, params)
    assert len(set(kept) ^ set(expected)) <= max(1, len(expected) // 10_000)


@pytest.mark.parametrize("seed", range(5))
def test_masks_equal_transformers_warpers(seed: int) -> None:
    """Red if a parameter stops meaning what it means in transformers (each rule, then all in our order)."""
    logits = np.random.default_rng(seed).standard_normal(3_000).astype(np.float32) * 3
    temperature, top_k, top_p, min_p = (
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.9),
        MinPLogitsWarper(0.02),
    )
    cases = [
        (SamplingParams(top_k=40), [top_k]),
        (SamplingParams(top_p=0.9), [top_p]),
        (SamplingParams(min_p=0.02), [min_p]),
        (SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02), [temperature, min_p, top_k, top_p]),
    ]
    for params, warpers in cases:
        scores = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits)[None])[0]
        kept = support(logits, params)
        assert kept_ids(logits, params) == torch.isfinite(scores).nonzero()[:, 0].tolist()
        np.testing.assert_allclose(kept.weights / kept.weights.sum(), scores.softmax(-1)[kept.ids], rtol=1e-4)


def test_top_k_beyond_the_vocabulary_is_off() -> None:
    """Red if a large top_k indexes past the row."""
    logits = np.zeros(10, dtype=np.float32)
    assert kept_ids(logits, SamplingParams(top_k=11)) == list(range(10))
    assert support(logits, SamplingParams(top_k=11)).ids is None


def test_masked_tokens_never_gain_weight() -> None:
    """Red if minus infinity turns into NaN or into a positive weight at an extreme temperature."""
    logits = np.array([-np.inf, 3e38, -3e38, 1.0, -np.inf], dtype=np.float32)
    for temperature in (1e-5, 1.0, 100.0):
        for params in (
            SamplingParams(temperature=temperature),
            SamplingParams(temperature=temperature, top_k=4, top_p=0.999),
        ):
            kept = support(logits, params)
            ids = np.arange(5) if kept.ids is None else kept.ids
            assert ids[kept.weights > 0].tolist() == [1]


@pytest.mark.parametrize("size", [1, 2, 700, 5000])
@pytest.mark.parametrize("top_p", [5e-324, 1e-9, 1 - 1e-9])
def test_a_nucleus_of_equal_tokens_is_never_empty(size: int, top_p: float) -> None:
    """Red when a share that rounds to a whole in float32 leaves no candidate: an exception here ends the engine."""
    equal = np.zeros(size, np.float32)
    kept = kept_ids(equal, SamplingParams(top_p=top_p))
    assert kept[0] == 0
    assert len(kept) == (1 if top_p < 0.5 else size)
    assert kept_ids(np.arange(size, dtype=np.float32), SamplingParams(top_k=1, top_p=top_p)) == [size - 1]
