"""Log-probabilities of chosen tokens and of the best alternatives.

They are of the model's own distribution: the natural log-softmax of the raw logits, before bias, penalties,
temperature and truncation (vLLM's default, `raw_logprobs`; the OpenAI API reports the same for default parameters).
Rank and alternatives follow one order: larger logit first, equal logits by lower id. A log-probability of minus
infinity is reported as -9999, as the OpenAI API does, because JSON has no infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from phloem.core.errors import RequestFailed
from phloem.core.request import TokenLogprob
from phloem.runtime.exec.sampling.state import FloatRow
from phloem.runtime.exec.sampling.support import exponentials, largest, total

LOWEST_LOGPROB = -9999.0
BYTES_PER_SLICE = 32 << 20  # prompt positions are brought to the host this many bytes at a time


def token_logprob(logits: FloatRow, token_id: int, num_top: int) -> TokenLogprob:
    """The entry of `token_id` in one row of raw logits [V] (finite maximum), with the `num_top` best alternatives."""
    normaliser = _log_sum_exp(logits)
    value = logits[token_id]
    rank = 1 + int(np.count_nonzero(logits > value)) + int(np.count_nonzero(logits[:token_id] == value))
    top: tuple[tuple[int, float], ...] = ()
    if num_top > 0:
        ids = largest(logits, num_top)
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        top = tuple((int(index), _logprob(logits[index], normaliser)) for index in ids)
    return TokenLogprob(token_id=token_id, logprob=_logprob(value, normaliser), rank=rank, top=top)


def prompt_logprobs(
    logits: torch.Tensor, next_token_ids: Sequence[int], num_top: int, *, first_row: int = 0
) -> tuple[TokenLogprob, ...]:
    """Entries of prompt tokens: `next_token_ids[i]` under the logits of the position before it, row `first_row + i`.

    `logits` is [L, V] float32 on any device; at most BYTES_PER_SLICE of it is on the host at a time. RequestFailed if a
    row has no finite maximum.
    """
    row_bytes = 4 * logits.shape[1]
    slice_rows = max(1, BYTES_PER_SLICE // row_bytes)
    entries: list[TokenLogprob] = []
    for start in range(0, len(next_token_ids), slice_rows):
        chosen = next_token_ids[start : start + slice_rows]
        rows: FloatRow = logits[first_row + start : first_row + start + len(chosen)].detach().cpu().numpy()
        for row, token_id in zip(rows, chosen, strict=True):
            reason = fault(float(row.max()))
            if reason is not None:
                raise RequestFailed(f"prompt log-probabilities cannot be computed: {reason}")
            entries.append(token_logprob(row, token_id, num_top))
    return tuple(entries)


def fault(maximum: float) -> str | None:
    """Why a row whose largest logit is `maximum` cannot be sampled (NaN if any logit is NaN), or None."""
    if math.isfinite(maximum):
        return None
    if math.isnan(maximum):
        return "the logits contain NaN"
    return "the logits contain infinity" if maximum > 0 else "no token is possible: every logit is minus infinity"


def _log_sum_exp(logits: FloatRow) -> float:
    return float(logits.max()) + math.log(total(exponentials(logits)))


def _logprob(value: np.float32, normaliser: float) -> float:
    return max(LOWEST_LOGPROB, float(value) - normaliser)
