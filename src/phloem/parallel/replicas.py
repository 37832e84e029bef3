"""Which replica a request goes to: the policies, and the load that they weigh. Pure: no clock, no network, no torch.

cache-aware:  cost(replica) = tokens in flight there + CACHE_WEIGHT x tokens of the prompt that are not cached there

A prompt goes where most of it is cached until that replica has more to do than the recomputation would cost; what is
cached nowhere goes to the least loaded, then to the one that holds least. Method: after SGLang's cache-aware load
balancer (Zheng et al.; two modes there, one cost here).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import msgspec

from phloem.core.digest import chain, shared_namespace
from phloem.core.errors import ConfigError
from phloem.parallel.cache_view import CacheView

RoutingPolicyName = Literal["cache-aware", "least-tokens", "round-robin"]
CACHE_WEIGHT = 8.0
"""Of a token that must be computed against one in flight: computed here it also evicts another, which is computed again
later. Measured (bench router, shared, but 96 groups of 8): hit rate 0.59 with 2, 0.79 with 4, 0.80 with 8, of 0.82."""
MAX_SESSIONS = 1 << 16
SESSION_SLACK_TOKENS = 8192
"""How much more than the least loaded a session's own replica may have in flight."""


class Prompt:
    """What a router knows of a request's prompt: `key`, `unit_bytes` bytes a token, or text that nobody tokenized."""

    def __init__(
        self, key: bytes = b"", *, unit_bytes: int = 4, namespace: str = "", max_tokens: int = 16, page_size: int = 32
    ) -> None:
        self.key, self.namespace, self.max_tokens = key, namespace, max_tokens
        self.unit_bytes = unit_bytes
        self.page_size = page_size  # for replicas that did not say theirs
        self.num_tokens = len(key) // unit_bytes
        self._digests: dict[int, tuple[int, ...]] = {}

    def digests(self, page_size: int | None) -> tuple[int, ...]:
        """The names of its whole pages. The last token is always computed, so a page that ends with it is no hit."""
        size = page_size or self.page_size
        if size not in self._digests:
            self._digests[size] = tuple(
                chain(self.key, bytes_per_page=size * self.unit_bytes, namespace=shared_namespace(self.namespace))
            )
        return self._digests[size]


class Load:
    """One replica as policies see it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.view = CacheView()
        self.num_requests = 0
        self.num_tokens = 0
        """Tokens in flight: prompt tokens that are not cached, until the first is answered, and tokens to generate."""

    def num_cached(self, prompt: Prompt) -> int:
        """Tokens of `prompt` that are, or will be, cached here."""
        size = self.view.page_size or prompt.page_size
        return min(prompt.num_tokens, size * self.view.num_cached(prompt.digests(self.view.page_size)))


class Offer(msgspec.Struct, frozen=True):
    """What a replica says of itself (GET /transfer). One that says nothing is `mixed`."""

    role: Literal["mixed", "prefill", "decode"] = "mixed"
    address: str | None = None
    fingerprint: str = ""
    """Pages may go between replicas that have the same."""

    def computes_for(self, other: Offer) -> bool:
        """Whether `other` can fetch the pages of its prompts here."""
        is_pair = self.role == "prefill" and other.role == "decode"
        return is_pair and self.address is not None and self.fingerprint == other.fingerprint


Policy = Callable[[Prompt, Sequence[Load]], Load]


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, prompt: Prompt, loads: Sequence[Load]) -> Load:
        self._count += 1
        return loads[self._count % len(loads)]


def least_tokens(prompt: Prompt, loads: Sequence[Load]) -> Load:
    """The one with the fewest tokens in flight."""
    return min(loads, key=lambda load: (load.num_tokens, load.num_requests, load.name))


def cache_aware(prompt: Prompt, loads: Sequence[Load]) -> Load:
    """The lowest cost (see above)."""

    def cost(load: Load) -> tuple[float, int, int, str]:
        num_uncached = prompt.num_tokens - load.num_cached(prompt)
        return load.num_tokens + CACHE_WEIGHT * num_uncached, load.view.num_pages, load.num_requests, load.name

    return min(loads, key=cost)


def make_policy(name: str) -> Policy:
    """The policy of that name. ConfigError lists those there are."""
    match name:
        case "round-robin":
            return RoundRobin()
        case "least-tokens":
            return least_tokens
        case "cache-aware":
            return cache_aware
    raise ConfigError(f"no routing policy {name!r}; there are {', '.join(get_args(RoutingPolicyName))}", field="policy")


class Assignment:
    """A request on its way to a replica, counted there until `end`."""

    def __init__(self, load: Load, prompt: Prompt) -> None:
        self.load = load
        self.num_cached = load.num_cached(prompt)
        self._digests = prompt.digests(load.view.page_size)
        self._prefill, self._decode = prompt.num_tokens - self.num_cached, prompt.max_tokens
        self._prompt_load: Load | None = None
        load.view.expect(self._digests)
        load.num_requests += 1
        load.num_tokens += self._prefill + self._decode

    def compute_prompt_at(self, load: Load) -> None:
        """A prefill replica computes the prompt: until that is done, it counts there, too."""
        self._prompt_load = load
        load.num_requests += 1
        load.num_tokens += self._prefill

    def answered(self) -> None:
        """The first token came: the prompt is computed."""
        self._end_prompt()
        self.load.num_tokens -= self._prefill
        self._prefill = 0

    def end(self) -> None:
        """It is over, one way or another."""
        was_computed = self._prefill == 0 or self.num_cached > 0
        self._end_prompt()
        self.load.num_requests -= 1
        self.load.num_tokens -= self._prefill + self._decode
        self.load.view.settle(self._digests, was_computed=was_computed)

    def _end_prompt(self) -> None:
        if (load := self._prompt_load) is not None:
            load.num_requests -= 1
            load.num_tokens -= self._prefill
            self._prompt_load = None


class Routing:
    """A policy with a memory for sessions. A session stays where it was while that replica can be had and is not much
    busier than the others."""

    def __init__(self, policy: Policy, *, max_sessions: int = MAX_SESSIONS) -> None:
        self._policy = policy
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._max_sessions = max_sessions

    def assign(self, prompt: Prompt, loads: Sequence[Load], *, session: str | None = None) -> Assignment:
        """Choose among `loads`, at least one, and count the request there."""
        chosen = self._of_session(session, loads) or self._policy(prompt, loads)
        if session is not None:
            self._sessions[session] = chosen.name
            self._sessions.move_to_end(session)
            if len(self._sessions) > self._max_sessions:
                self._sessions.popitem(last=False)
        return Assignment(chosen, prompt)

    def _of_session(self, session: str | None, loads: Sequence[Load]) -> Load | None:
        name = None if session is None else self._sessions.get(session)
        own = next((load for load in loads if load.name == name), None)
        if own is None or own.num_tokens > min(load.num_tokens for load in loads) + SESSION_SLACK_TOKENS:
            return None
        return own
