"""Which tokens of a row may be drawn, and with what weight: temperature, min_p, top_k, top_p.

The order is vLLM's: each rule sees the distribution the previous one left, renormalised. All rules keep the first
tokens of one order: larger logit first, equal logits by lower id. No row is ever sorted: a k-th value is bounded from
below by the maxima of groups; a nucleus is weighed bucket by bucket and only its edge bucket is sorted.
Sources: top-k, arXiv:1805.04833 (section 5.4); nucleus (top-p), arXiv:1904.09751 (section 3.1); min-p,
arXiv:2407.01082 (section 3).

Each row is computed alone, in numpy, in one fixed order of operations: no number depends on the rest of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from phloem.core.request import SamplingParams
from phloem.runtime.exec.sampling.state import FloatRow, TokenIds

SUM_BLOCK = 256  # floats added in float32 before the sums continue in float64
LIKELY_NUCLEUS = 1024  # a nucleus is first looked for among tokens more likely than (1 - top_p) / this
BUCKET_SHIFT = 18  # buckets of weights: the bits of a positive float32 above this one, 3 % wide


class Support(NamedTuple):
    """Tokens that may be drawn: `ids` ascending (None: every id), `weights` their unnormalised probabilities, max 1."""

    ids: TokenIds | None
    weights: FloatRow

    def keep(self, positions: TokenIds) -> Support:
        """The support of the tokens at `positions` (ascending) of this one."""
        ids = positions if self.ids is None else self.ids[positions]
        return Support(ids, self.weights[positions])


def support(logits: FloatRow, params: SamplingParams) -> Support:
    """The tokens of one row that may be drawn. `logits` [V]: finite maximum; `params`: positive temperature."""
    ids = None
    if 0 < params.top_k < len(logits):
        ids = largest(logits, params.top_k)
        logits = logits[ids]
    kept = Support(ids, exponentials(logits, params.temperature))
    # min_p before or after top_k leaves the same tokens: both keep a head of one order, and min_p asks for the maximum.
    if params.min_p > 0:
        kept = kept.keep(np.flatnonzero(kept.weights >= np.float32(min(params.min_p, 1.0))))
    if params.top_p < 1:
        kept = kept.keep(_nucleus(kept.weights, params.top_p))
    return kept


def largest(values: FloatRow, count: int) -> TokenIds:
    """Positions, ascending, of the `count` largest of `values` (no NaN); of equal values the lower positions win."""
    if count >= len(values):
        return np.arange(len(values))
    bound = _lower_bound_of_kth(values, count)
    candidates = np.flatnonzero(values >= bound)
    return candidates[_head(values[candidates], count)]


def exponentials(logits: FloatRow, temperature: float = 1.0) -> FloatRow:
    """exp((logits - max) / temperature), so that the largest weight is 1. `logits` [n] with a finite maximum."""
    with np.errstate(over="ignore"):
        row: FloatRow = logits - logits.max()
        if temperature != 1.0:
            row /= np.float32(temperature)
    np.exp(row, out=row)
    return row


def block_sums(weights: FloatRow) -> FloatRow:
    """Sums of SUM_BLOCK consecutive weights, in float32."""
    sums: FloatRow = np.add.reduceat(weights, np.arange(0, len(weights), SUM_BLOCK))
    return sums


def total(weights: FloatRow) -> float:
    """The sum of the weights, to about float32 precision, in a fixed order."""
    return float(block_sums(weights).sum(dtype=np.float64))


def _nucleus(weights: FloatRow, top_p: float) -> TokenIds:
    """Positions of the fewest most likely tokens whose share of the weight is at least `top_p`; at least one."""
    everything = total(weights)
    wanted = top_p * everything
    # Tokens of at most tail / n each cannot outweigh the tail together, so n = len(weights) always finds the nucleus.
    tail = everything - wanted
    for divisor in (min(LIKELY_NUCLEUS, len(weights)), len(weights)):
        candidates = np.flatnonzero(weights >= np.float32(tail / divisor))  # `>`: none of equal ones, once rounded
        likely = weights[candidates]
        if len(likely) and total(likely) >= wanted:
            break
    return candidates[_head_of_mass(likely, wanted)]


def _head_of_mass(weights: FloatRow, wanted: float) -> TokenIds:
    """Positions, ascending, of the fewest largest of `weights` (positive) whose sum reaches `wanted`; at least one."""
    buckets = weights.view(np.int32) >> BUCKET_SHIFT
    mass_from_top = np.cumsum(np.bincount(buckets, weights=weights)[::-1])
    steps = min(int(np.searchsorted(mass_from_top, wanted)), len(mass_from_top) - 1)
    edge = len(mass_from_top) - 1 - steps
    on_edge = np.flatnonzero(buckets == edge)
    mass = np.cumsum(np.sort(weights[on_edge])[::-1], dtype=np.float64)
    mass += mass_from_top[steps - 1] if steps else 0.0
    count = int(np.searchsorted(mass, wanted)) + 1
    kept = buckets > edge
    kept[on_edge[_head(weights[on_edge], count)]] = True
    return np.flatnonzero(kept)


def _head(values: FloatRow, count: int) -> TokenIds:
    """Positions, ascending, of the `count` largest values, equal ones by lower position; `values` is short."""
    if count >= len(values):
        return np.arange(len(values))
    last = np.partition(values, len(values) - count)[len(values) - count]
    above = values > last
    ties = np.flatnonzero(values == last)
    above[ties[: count - int(np.count_nonzero(above))]] = True
    return np.flatnonzero(above)


def _lower_bound_of_kth(values: FloatRow, count: int) -> np.float32:
    """A number that at least `count` of `values` reach, and few more: the `count`-th largest maximum of many groups."""
    num_groups = max(1024, 8 * count)
    group_size = len(values) // num_groups
    if group_size <= 1:
        return np.float32(-np.inf)
    maxima = values[: group_size * num_groups].reshape(group_size, num_groups).max(axis=0)
    return np.float32(np.partition(maxima, num_groups - count)[num_groups - count])
