"""Changes to one row's logits that depend on its request and its tokens, before temperature.

Order, as in vLLM's V1 sampler: logit bias (OpenAI API, `logit_bias`: added to the logit); end tokens held back until
`min_tokens`; repetition penalty over prompt and generated tokens (CTRL, arXiv:1909.05858, section 4.1, in the form all
engines use: positive logits are divided, negative ones multiplied); frequency and presence penalties over generated
tokens (OpenAI API: logit -= count * frequency + (count > 0) * presence).
"""

from __future__ import annotations

import numpy as np

from phloem.runtime.exec.sampling.state import FloatRow, SamplingState, TokenCounts


def adjusted(logits: FloatRow, state: SamplingState) -> FloatRow:
    """The row's logits [V] after bias, held-back end tokens and penalties: a copy, or `logits` if nothing changes."""
    if not state.adjusts_logits:
        return logits
    row = logits.copy()
    row[state.bias_ids] += state.bias_values
    if state.holds_back_end:
        row[state.end_ids] = -np.inf
    if state.counts is not None:
        _penalise(row, state, state.counts)
    return row


def _penalise(row: FloatRow, state: SamplingState, counts: TokenCounts) -> None:
    params = state.params
    values = row[counts.ids]
    if params.repetition_penalty != 1.0:
        factor = np.float32(params.repetition_penalty)
        values = np.where(values > 0, values / factor, values * factor)
    values -= np.float32(params.frequency_penalty) * counts.counts
    values -= np.float32(params.presence_penalty) * (counts.counts > 0)
    row[counts.ids] = values
