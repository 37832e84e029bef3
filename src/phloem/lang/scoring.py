"""Which choice `select` takes, from the log-probabilities of each (natural log, temperature 1)."""

from __future__ import annotations

from collections.abc import Sequence

from phloem.lang.engine import Score
from phloem.lang.ir import Method


def best(scores: Sequence[Score], method: Method) -> int:
    """Position of the choice; the first of those that are equal."""
    if method == "greedy_token":
        return _greedy(scores)
    values = [_mean(_relative(score) if method == "unconditional_normalized" else score.logprobs) for score in scores]
    return max(range(len(values)), key=values.__getitem__)


def _relative(score: Score) -> Sequence[float]:
    """How much likelier the prompt makes each token: removes the model's taste for common words."""
    return [given - alone for given, alone in zip(score.logprobs, score.unconditional, strict=True)]


def _greedy(scores: Sequence[Score]) -> int:
    """Walk down the tree of the choices' tokens, each time to the likeliest. A choice that ends while others go on is
    weighed by its mean."""
    alive = list(range(len(scores)))
    position = 0
    while len(alive) > 1 and any(position < len(scores[index].token_ids) for index in alive):
        value = {index: _at(scores[index], position) for index in alive}
        winner = max(alive, key=value.__getitem__)
        token = _token(scores[winner], position)
        alive = [
            index for index in alive if index == winner or (token >= 0 and _token(scores[index], position) == token)
        ]
        position += 1
    return alive[0]


def _at(score: Score, position: int) -> float:
    return score.logprobs[position] if position < len(score.logprobs) else _mean(score.logprobs)


def _token(score: Score, position: int) -> int:
    return score.token_ids[position] if position < len(score.token_ids) else -1


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("-inf")
