"""StepResult: what a worker observed when it applied one plan."""

from __future__ import annotations

import msgspec

from phloem.core.request import TokenLogprob


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """Tokens sampled by one step.

    `rows` are the device rows that sampled, in batch order; `tokens` what each appended (one id; several once
    speculation accepts drafts); `logprobs` is parallel to `rows` when any row asked, else empty; an entry is empty
    for a row that did not ask. `prompt_logprobs` holds (row, entries of the prompt tokens this step computed: the first
    entry belongs to the first token after the chunk's first, continued by the next chunk). `failed` holds (row,
    reason) for rows that produced no token because their own numbers went wrong; the step's other rows are good.
    `late` are rows that were to sample, but whose constraint's mask was not ready when the logits were: their last
    token counts as not computed, so the next step computes it again and samples then.
    """

    step: int
    rows: tuple[int, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    prompt_logprobs: tuple[tuple[int, tuple[TokenLogprob, ...]], ...] = ()
    failed: tuple[tuple[int, str], ...] = ()
    elapsed_s: float = 0.0
    late: tuple[int, ...] = ()
