"""The least prompt tokens that any sharing can compute: an offline look at the tree of everything that was said."""

from __future__ import annotations

from collections.abc import Sequence


class Oracle:
    """Token sequences, in the order they were asked for. A token is computed once for each different prefix before it;
    the last token of a prompt always is, since its logits are wanted."""

    def __init__(self) -> None:
        self._root: dict[int, dict[int, object]] = {}
        self.num_least = 0
        self.num_requests = 0

    def ask(self, prompt: Sequence[int]) -> None:
        """A request's prompt: what nobody computed before counts."""
        self.num_requests += 1
        self.num_least += max(1, self._add(prompt))

    def answered(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """What was generated after it is computed, too, but for its last token; it counts as decoding, not here."""
        self._add([*prompt, *generated][:-1])

    def _add(self, tokens: Sequence[int]) -> int:
        node, num_new = self._root, 0
        for token in tokens:
            if token not in node:
                node[token] = {}
                num_new += 1
            node = node[token]  # type: ignore[assignment]
        return num_new
