"""What one row's sampler must remember: its parameters, its seed, how many tokens it has generated, and which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phloem.core.plan import RowStart
from phloem.core.request import Constraint, SamplingParams
from phloem.runtime.grammar.matcher import Matcher

TokenIds = NDArray[np.int64]
FloatRow = NDArray[np.float32]


class Grammars(Protocol):
    """Where rows with a constraint get their matchers."""

    def matcher(self, constraint: Constraint, generated: Sequence[int] = ()) -> Matcher:
        """One that has seen `generated`; its `fault` says what went wrong, if anything did."""


class TokenCounts:
    """A growing sparse map token id -> number of times counted; ids may be listed with a count of zero."""

    __slots__ = ("_counts", "_ids", "_position")

    def __init__(self, *, listed: Sequence[int], counted: Sequence[int]) -> None:
        both = np.asarray([*listed, *counted], dtype=np.int64)
        self._ids: TokenIds = np.unique(both)
        self._counts: FloatRow = np.zeros(len(self._ids), dtype=np.float32)
        np.add.at(self._counts, np.searchsorted(self._ids, both[len(listed) :]), 1)
        self._position = {token_id: index for index, token_id in enumerate(self._ids.tolist())}

    def add(self, token_id: int) -> None:
        """Count one more occurrence; amortised constant time."""
        index = self._position.setdefault(token_id, len(self._position))
        if index >= len(self._ids):
            room = max(16, len(self._ids))
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._ids[index] = token_id
        self._counts[index] += 1

    @property
    def ids(self) -> TokenIds:
        """The listed and counted ids, each once, in no particular order. Shape [n]."""
        return self._ids[: len(self._position)]

    @property
    def counts(self) -> FloatRow:
        """The count of each of `ids`. Shape [n]."""
        return self._counts[: len(self._position)]


class SamplingState:
    """The sampler's memory of one device row. The row store owns it and calls `append` once for each sampled token.

    It is a function of the row's tokens alone, so a row that starts again after a preemption, its generated tokens
    included in `RowStart.token_ids`, continues exactly as it would have. `vocab_size` is the width of the logits; ids
    outside it (a logit bias, an end token of a larger vocabulary) are ignored.
    """

    __slots__ = ("bias_ids", "bias_values", "counts", "end_ids", "matcher", "num_generated", "params", "seed")

    def __init__(
        self,
        *,
        params: SamplingParams,
        seed: int,
        prompt: Sequence[int],
        generated: Sequence[int],
        vocab_size: int,
        end_token_ids: Sequence[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self.params = params
        self.matcher = matcher
        self.seed = seed
        self.num_generated = len(generated)
        bias = [(token_id, value) for token_id, value in params.logit_bias.items() if 0 <= token_id < vocab_size]
        self.bias_ids: TokenIds = np.asarray([token_id for token_id, _ in bias], dtype=np.int64)
        self.bias_values: FloatRow = np.asarray([value for _, value in bias], dtype=np.float32)
        ends = {token_id for token_id in (*end_token_ids, *params.stop_token_ids) if 0 <= token_id < vocab_size}
        self.end_ids: TokenIds = np.asarray(sorted(ends), dtype=np.int64)
        repeats = params.repetition_penalty != 1.0
        penalises = repeats or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self.counts = TokenCounts(listed=prompt if repeats else (), counted=generated) if penalises else None

    @classmethod
    def start(
        cls,
        start: RowStart,
        *,
        vocab_size: int,
        end_token_ids: Sequence[int] = (),
        grammars: Grammars | None = None,
    ) -> SamplingState:
        """The state of a row that starts; `end_token_ids` are the model's (held back until `min_tokens`)."""
        generated = start.token_ids[start.num_prompt_tokens :]
        matcher = None
        if (constraint := start.sampling.constraint) is not None:
            assert grammars is not None, "a constraint came to a worker without grammars"
            matcher = grammars.matcher(constraint, generated)
        return cls(
            params=start.sampling,
            seed=start.seed,
            prompt=start.token_ids[: start.num_prompt_tokens],
            generated=generated,
            vocab_size=vocab_size,
            end_token_ids=end_token_ids,
            matcher=matcher,
        )

    def append(self, token_id: int) -> None:
        """Record one generated token."""
        self._count(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)

    def force(self) -> list[int]:
        """Record the tokens that a constraint leaves no choice about, and return them; none where log-probabilities are
        wanted, which need their logits."""
        if self.matcher is None or self.params.logprobs is not None:
            return []
        forced = self.matcher.force(self.params.max_tokens - self.num_generated)
        for token_id in forced:
            self._count(token_id)
        return forced

    def _count(self, token_id: int) -> None:
        self.num_generated += 1
        if self.counts is not None:
            self.counts.add(token_id)

    @property
    def holds_back_end(self) -> bool:
        """Whether the next token may not be an end or stop token, because `min_tokens` is not reached."""
        return self.num_generated < self.params.min_tokens

    @property
    def adjusts_logits(self) -> bool:
        """Whether bias, held-back end tokens or penalties change the logits of the next token."""
        return self.counts is not None or len(self.bias_ids) > 0 or self.holds_back_end

    @property
    def takes_argmax(self) -> bool:
        """Whether the next token is simply the largest raw logit: greedy, and nothing adjusts or masks the logits."""
        return self.params.is_greedy and self.matcher is None and not self.adjusts_logits
