"""The sampler of a CPU: logits of the rows that want a token -> tokens, log-probabilities, failures.

greedy, nothing adjusted:  argmax (or handed in by the kernel that made the logits)
everything else, row by row:
    raw logits -> masked (constraint) -> adjusted (bias, min_tokens, penalties)
         |          -> support (temperature, min_p, top_k, top_p) -> draw
         `-> log-probabilities
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from phloem.core.request import TokenLogprob
from phloem.runtime.exec.sampling.adjust import adjusted
from phloem.runtime.exec.sampling.draw import draw, uniform
from phloem.runtime.exec.sampling.logprobs import fault, token_logprob
from phloem.runtime.exec.sampling.state import FloatRow, SamplingState
from phloem.runtime.exec.sampling.support import support
from phloem.runtime.grammar.masks import masked
from phloem.runtime.grammar.matcher import BitRow

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's samples, parallel to the states passed in.

    `tokens` holds NO_TOKEN for a failed row. `logprobs` is empty when no row asked, else parallel to `tokens`, with an
    empty entry for a row that did not ask or failed. `failed` holds (index into the states, reason).
    """

    tokens: tuple[int, ...]
    logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    failed: tuple[tuple[int, str], ...] = ()


def sample(
    logits: torch.Tensor,
    states: Sequence[SamplingState],
    *,
    rows: Sequence[int] | None = None,
    argmax: Sequence[int] | None = None,
    masks: Mapping[int, BitRow] | None = None,
) -> Sampled:
    """Sample one token for each of `states`; the caller appends it to the state afterwards.

    `logits` is [L, V] float32, on the host, and is only read. `rows[i]` is the row of `logits` that belongs to
    `states[i]` (default: i). `argmax`, if given, holds the id of the largest logit of every row of `logits` (lowest id
    of equal ones; for a row with NaN, the id of a NaN): of a plain greedy row only that one logit is then read.
    `masks` holds, by row of `logits`, the masks that are computed already; others are computed here.
    """
    rows = range(len(states)) if rows is None else rows
    wants_host = {row for row, state in zip(rows, states, strict=True) if _reads_logits(state)}
    greedy = [row for row, state in zip(rows, states, strict=True) if state.takes_argmax]
    everything: FloatRow = logits.detach().numpy()
    host = {row: everything[row] for row in sorted(wants_host)}
    best = _best_ids(everything, greedy, argmax)
    allowed = _allowed_rows(host, dict(zip(rows, states)), masks or {})
    tokens: list[int] = []
    logprobs: list[tuple[TokenLogprob, ...]] = []
    failed: list[tuple[int, str]] = []
    for index, (row, state) in enumerate(zip(rows, states, strict=True)):
        token_or_reason = best[row] if state.takes_argmax else sample_row(allowed.get(row, host[row]), state)
        if isinstance(token_or_reason, str):
            failed.append((index, token_or_reason))
            tokens.append(NO_TOKEN)
            logprobs.append(())
            continue
        tokens.append(token_or_reason)
        num_top = state.params.logprobs
        logprobs.append(() if num_top is None else (token_logprob(host[row], token_or_reason, num_top),))
    return Sampled(tuple(tokens), tuple(logprobs) if any(logprobs) else (), tuple(failed))


def sample_row(logits: FloatRow, state: SamplingState) -> int | str:
    """The next token of one row of raw (or masked) logits [V], or the reason why there is none."""
    if state.matcher is not None and state.matcher.fault is not None:
        return f"the constraint cannot be followed any further: {state.matcher.fault}"
    reason = fault(float(logits.max()))
    if reason is not None:
        return reason
    row = adjusted(logits, state)
    if row is not logits and (reason := fault(float(row.max()))) is not None:
        return reason
    if state.params.is_greedy:
        return int(row.argmax())
    return draw(support(row, state.params), uniform(seed=state.seed, num_generated=state.num_generated))


def _allowed_rows(
    host: Mapping[int, FloatRow], states: Mapping[int, SamplingState], masks: Mapping[int, BitRow]
) -> Mapping[int, FloatRow]:
    """The rows that have a constraint, without the tokens that may not follow."""
    matchers = {row: state.matcher for row, state in states.items() if state.matcher is not None}
    bits = {row: masks[row] if row in masks else matcher.mask() for row, matcher in matchers.items()}
    good = [row for row, matcher in matchers.items() if matcher.fault is None]
    if not good:
        return {}
    return dict(zip(good, masked([host[row] for row in good], [bits[row] for row in good])))


def _reads_logits(state: SamplingState) -> bool:
    return not state.takes_argmax or state.params.logprobs is not None


def _best_ids(logits: FloatRow, rows: Sequence[int], argmax: Sequence[int] | None) -> Mapping[int, int | str]:
    """For each of `rows`, the id of its largest raw logit, or why there is none."""
    if not rows:
        return {}
    ids = [int(logits[row].argmax()) if argmax is None else int(argmax[row]) for row in rows]
    maxima = logits[np.asarray(rows), np.asarray(ids)].tolist()
    return {row: fault(value) or token_id for row, token_id, value in zip(rows, ids, maxima, strict=True)}
