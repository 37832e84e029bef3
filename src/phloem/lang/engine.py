"""What the executor asks of an engine. States are the engine's own immutable values: tokens, or messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from phloem.lang.ir import Gen, Method, Role

S = TypeVar("S")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a run cost. `computed_tokens` are prompt tokens that no cache had."""

    requests: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class Said(msgspec.Struct, frozen=True):
    """A generation is over. `finish` is "stop" or "length"."""

    text: str
    finish: str
    usage: Usage


class Score(msgspec.Struct, frozen=True):
    """How likely one choice is: natural log-probabilities of its tokens, and with `unconditional` those without a
    prompt before them. `token_ids` tell where choices part."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    unconditional: tuple[float, ...] = ()


class Need(msgspec.Struct, frozen=True):
    """What a branch comes back for: the first `num_tokens` of a state (None: all), under the name of its lease."""

    lease: str
    num_tokens: int | None = None


class Listener(Protocol):
    """Hears a generation's text as it comes."""

    def __call__(self, text: str) -> None:
        """More text."""


class Engine(Protocol[S]):
    """Where programs run. Every method that waits frees what it holds when it is cancelled."""

    @property
    def max_state_tokens(self) -> int:
        """The longest prompt; 0 when nobody knows."""

    @property
    def tokens_per_page(self) -> int:
        """Granularity of memory; 0 when nobody knows."""

    @property
    def max_parallel(self) -> int:
        """Requests worth having under way at once."""

    def start(self) -> S:
        """Nothing said yet."""

    def num_tokens(self, state: S) -> int:
        """How long a state is, as far as the engine can tell."""

    def text(self, state: S) -> str:
        """What the state says, for people."""

    def add_text(self, state: S, text: str) -> S:
        """Append a text."""

    def open_turn(self, state: S, role: Role) -> S:
        """Begin a turn."""

    def close_turn(self, state: S) -> S:
        """End the turn that is open."""

    def add_suffixes(self, state: S, *, base: S, branches: Sequence[S]) -> S:
        """Append what each of `branches` said after `base`."""

    def lease(self) -> str:
        """A new name for what a branch will come back for."""

    def release(self, leases: Sequence[str]) -> None:
        """Nobody comes back for these."""

    async def generate(
        self, state: S, gen: Gen, *, seed: int, place: str, listen: Listener, needs: Sequence[Need] = ()
    ) -> tuple[S, Said]:
        """Let the model go on. What was computed of `needs` stays leased."""

    async def score(
        self, state: S, choices: Sequence[str], *, method: Method, place: str, needs: Sequence[Need] = ()
    ) -> tuple[Sequence[Score], Usage]:
        """How likely each choice is after `state`. What was computed of `needs` stays leased."""

    async def check(self, gen: Gen, *, place: str) -> None:
        """InvalidRequest, naming `place`, for a constraint that the engine cannot follow. Before anything runs."""

    async def warm(self, state: S, *, lease: str) -> Usage:
        """Have the state computed, and leased, before several that begin with it; may do nothing."""
