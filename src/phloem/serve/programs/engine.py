"""TokenEngine: the programs' engine over an engine client. A state is the token ids said so far.

A fork is the same ids again: the ledger shares their pages by reference, copy on write, and nothing is sent twice
within the engine but integers. What a branch will come back for is leased between its requests (`core.wire.Lease`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import lru_cache
from typing import Protocol

import msgspec

from phloem.core import wire
from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint, SamplingParams, TokenLogprob
from phloem.lang.engine import Listener, Need, Said, Score, Usage
from phloem.lang.ir import Gen, Method, Role
from phloem.serve.client import RequestEvent
from phloem.serve.openai.errors import failure_of
from phloem.serve.openai.generation import Choice
from phloem.serve.openai.params import ModelLimits, fit_context
from phloem.serve.programs.turns import TurnPieces
from phloem.serve.text.detokenizer import Detokenizer
from phloem.serve.text.stop import StopStrings
from phloem.serve.text.tokenizer import Tokenizer

MAX_REMEMBERED_TEXTS, MAX_REMEMBERED_CHARS = 1024, 8192

CheckConstraint = Callable[[Constraint, str], Awaitable[None]]
"""InvalidRequest, naming the field given, for a constraint that cannot be followed."""


class Requests(Protocol):
    """The part of an EngineClient that programs need."""

    def generate(self, submit: wire.Submit) -> AsyncGenerator[RequestEvent, None]:
        """Submit; the request's events; closing it early aborts."""

    def stop_choice(self, request_id: str, choice: int) -> None:
        """Finish one choice: its text met a stop string."""

    def release(self, leases: Sequence[str]) -> None:
        """Nobody needs these prefixes any more."""


class TokenState(msgspec.Struct, frozen=True):
    """What was said: token ids, and as text for people. `roles` of the turns so far."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    roles: tuple[Role, ...] = ()


class TokenEngine:
    """An `Engine` of lang/. `namespace` separates its cached prefixes from others'."""

    def __init__(
        self,
        *,
        requests: Requests,
        tokenizer: Tokenizer,
        turns: TurnPieces,
        limits: ModelLimits,
        run_id: str,
        max_parallel: int,
        tokens_per_page: int,
        namespace: str = "",
        priority: int = 0,
        check_constraint: CheckConstraint | None = None,
    ) -> None:
        self.max_state_tokens = limits.max_prompt_len
        self.max_parallel = max_parallel
        self.tokens_per_page = tokens_per_page
        self._requests = requests
        self._tokenizer = tokenizer
        self._turns = turns
        self._limits = limits
        self._run_id = run_id
        self._namespace, self._priority = namespace, priority
        self._check_constraint = check_constraint
        self._numbers = itertools.count()
        self._remembered = lru_cache(MAX_REMEMBERED_TEXTS)(self._tokenize)

    # -- states

    def start(self) -> TokenState:
        """Nothing said yet."""
        return TokenState()

    def num_tokens(self, state: TokenState) -> int:
        """Exactly."""
        return len(state.tokens)

    def text(self, state: TokenState) -> str:
        """Template text included."""
        return state.text

    def add_text(self, state: TokenState, text: str) -> TokenState:
        """The text's own tokens; at the very beginning with what the model wants there (usually a BOS)."""
        ids = self.encode(text, is_first=not state.tokens)
        return TokenState(state.tokens + ids, state.text + text, state.roles)

    def open_turn(self, state: TokenState, role: Role) -> TokenState:
        """Close the turn before, as the chat template does, and begin this one."""
        roles = (*state.roles, role)
        piece = self._turns.opening(roles)
        ids = tuple(self._tokenizer.encode_guarded(piece, field="program"))
        return TokenState(state.tokens + ids, state.text + piece, roles)

    def close_turn(self, state: TokenState) -> TokenState:
        """What closes a turn is written with the opening of the next: the template decides it there."""
        return state

    def add_suffixes(self, state: TokenState, *, base: TokenState, branches: Sequence[TokenState]) -> TokenState:
        """The branches' tokens after `base`, as they are."""
        tokens, text = state.tokens, state.text
        for branch in branches:
            if branch.roles != base.roles:
                raise InvalidRequest("join: a branch that opened turns cannot be appended", field="program")
            tokens += branch.tokens[len(base.tokens) :]
            text += branch.text[len(base.text) :]
        return TokenState(tokens, text, state.roles)

    def encode(self, text: str, *, is_first: bool = False) -> tuple[int, ...]:
        """Token ids of a text; control tokens spelled in it stay text."""
        tokenize = self._remembered if len(text) <= MAX_REMEMBERED_CHARS else self._tokenize
        return tokenize(text, is_first)

    def _tokenize(self, text: str, is_first: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special=is_first, field="program"))

    # -- what is needed again

    def lease(self) -> str:
        """A name of its own among all that the engine knows."""
        return f"{self._run_id}/{next(self._numbers)}"

    def release(self, leases: Sequence[str]) -> None:
        """The engine may forget what these hold."""
        self._requests.release(leases)

    # -- the model

    async def generate(
        self, state: TokenState, gen: Gen, *, seed: int, place: str, listen: Listener, needs: Sequence[Need] = ()
    ) -> tuple[TokenState, Said]:
        """One request. A stop string ends the text, and the state, before itself."""
        params = SamplingParams(
            max_tokens=gen.max_tokens,
            temperature=gen.temperature,
            top_p=gen.top_p,
            top_k=min(gen.top_k, self._limits.vocab_size),
            min_p=gen.min_p,
            seed=seed,
            stop=gen.stop,
            constraint=constraint_of(gen),
        )
        submit = self._submit(state.tokens, params, place=place, needs=needs)
        stops = StopStrings(gen.stop) if gen.stop else None
        choice = Choice(index=0, detokenizer=Detokenizer(self._tokenizer, stops=stops), include_stop=False)
        said = _Heard()
        async with aclosing(self._requests.generate(submit)) as events:
            async for event in events:
                match event:
                    case wire.Tokens() if not choice.is_finished:
                        text, finish, reason = choice.advance(event)
                        said.hear(event, text, finish, reason)
                        if text:
                            listen(text)
                        if finish is not None and event.finish is None:
                            self._requests.stop_choice(submit.request_id, 0)
                    case wire.Tokens():
                        pass
                    case wire.Finished():
                        said.usage = _usage(event)
                    case wire.Failed():
                        raise failure_of(event)
        text = "".join(said.texts)
        kept = self._kept(said.ids, text) if isinstance(said.reason, str) else said.ids[: said.num_kept]
        return (
            TokenState(state.tokens + tuple(kept), state.text + text, state.roles),
            Said(text=text, finish=said.finish, usage=said.usage),
        )

    def _kept(self, ids: list[int], text: str) -> list[int]:
        """The generated tokens up to a stop string: whole ones, and the beginning of the one that it cut."""
        data = text.encode()
        num_bytes = 0
        for index, id in enumerate(ids):
            piece = b"" if self._tokenizer.is_special(id) else self._tokenizer.token_bytes(id)
            if data[num_bytes : num_bytes + len(piece)] != piece:
                rest = data[num_bytes:].decode(errors="replace")
                return [*ids[:index], *(self.encode(rest) if rest else ())]
            num_bytes += len(piece)
        return ids

    async def score(
        self, state: TokenState, choices: Sequence[str], *, method: Method, place: str, needs: Sequence[Need] = ()
    ) -> tuple[Sequence[Score], Usage]:
        """One request a choice, each the state's tokens and the choice's: only those after the state's last are
        computed, but for the first."""
        encoded = [self.encode(choice) for choice in choices]
        given = [self._score(state.tokens, ids, place, needs) for ids in encoded]
        alone: list[Awaitable[tuple[tuple[float, ...], Usage]]] = []
        if method == "unconditional_normalized":
            neutral = self._neutral_tokens(place)
            alone = [self._score(neutral, ids, place) for ids in encoded]
        results = await _together([*given, *alone])
        scores = []
        for index, ids in enumerate(encoded):
            unconditional = results[len(encoded) + index][0] if alone else ()
            scores.append(Score(ids, results[index][0], unconditional))
        return scores, sum((usage for _, usage in results), Usage())

    async def _score(
        self, prefix: tuple[int, ...], ids: tuple[int, ...], place: str, needs: Sequence[Need] = ()
    ) -> tuple[tuple[float, ...], Usage]:
        """Log-probabilities of `ids` after `prefix`."""
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, prompt_logprobs_start=len(prefix) - 1, ignore_eos=True
        )
        submit = self._submit(prefix + ids, params, place=place, needs=needs, is_empty=not prefix)
        entries: list[TokenLogprob] = []
        usage = Usage()
        async with aclosing(self._requests.generate(submit)) as events:
            async for event in events:
                match event:
                    case wire.Tokens():
                        entries.extend(event.prompt_logprobs)
                    case wire.Finished():
                        usage = _usage(event)
                    case wire.Failed():
                        raise failure_of(event)
        assert len(entries) == len(ids), f"{len(entries)} log-probabilities for {len(ids)} tokens"
        return tuple(entry.logprob for entry in entries), usage

    async def check(self, gen: Gen, *, place: str) -> None:
        """The constraint is tried, where there is somebody to try it, before the engine meets it."""
        constraint = constraint_of(gen)
        if constraint is not None and self._check_constraint is not None:
            await self._check_constraint(constraint, place)

    async def warm(self, state: TokenState, *, lease: str) -> Usage:
        """Compute a prefix for others to find: one token is generated after it, which nobody reads."""
        params = SamplingParams(max_tokens=1, temperature=0.0)
        needs = [Need(lease, len(state.tokens))]
        submit = self._submit(state.tokens, params, place="program", needs=needs)
        usage = Usage()
        async with aclosing(self._requests.generate(submit)) as events:
            async for event in events:
                match event:
                    case wire.Finished():
                        usage = _usage(event)
                    case wire.Failed():
                        raise failure_of(event)
                    case wire.Tokens():
                        pass
        return usage

    def _neutral_tokens(self, place: str) -> tuple[int, ...]:
        """What stands before a text that nothing stands before: BOS, or else an end token."""
        if self._tokenizer.bos_id is not None:
            return (self._tokenizer.bos_id,)
        if not self._tokenizer.eos_ids:
            raise InvalidRequest(f"{place}: this model has no token to begin a text; use another method", field=place)
        return (min(self._tokenizer.eos_ids),)

    def _submit(
        self,
        tokens: tuple[int, ...],
        params: SamplingParams,
        *,
        place: str,
        needs: Sequence[Need],
        is_empty: bool = False,
    ) -> wire.Submit:
        if not tokens or is_empty:
            raise InvalidRequest(f"{place}: nothing was said before; append some text first", field=place)
        fitted = fit_context(params, num_prompt_tokens=len(tokens), limits=self._limits, field=place)
        return wire.Submit(
            f"{self._run_id}-{next(self._numbers)}",
            tokens,
            fitted,
            priority=self._priority,
            namespace=self._namespace,
            leases=tuple(wire.Lease(need.lease, need.num_tokens) for need in needs),
        )


class _Heard:
    """One generation while it goes on."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.finish = "length"
        self.reason: str | int | None = None
        self.num_kept = 0
        self.usage = Usage()

    def hear(self, event: wire.Tokens, text: str, finish: str | None, reason: str | int | None) -> None:
        """More of it. An end token is not kept: the next turn's opening writes it where one belongs."""
        self.ids.extend(event.token_ids)
        self.texts.append(text)
        self.num_kept = len(self.ids) - (event.stop_token is not None)
        if finish is not None:
            self.finish, self.reason = finish, reason


def constraint_of(gen: Gen) -> Constraint | None:
    """The node's constraint as the engine knows it."""
    if gen.regex is not None:
        return Constraint("regex", gen.regex)
    if gen.json_schema is not None:
        return Constraint("json_schema", json.dumps(gen.json_schema))
    if gen.choices is not None:
        return Constraint("choice", json.dumps(gen.choices))
    return None if gen.grammar is None else Constraint("grammar", gen.grammar)


async def _together(
    scores: Sequence[Awaitable[tuple[tuple[float, ...], Usage]]],
) -> list[tuple[tuple[float, ...], Usage]]:
    """All at once; the first failure, or a cancellation, ends the others."""
    tasks = [asyncio.ensure_future(score) for score in scores]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _usage(event: wire.Finished) -> Usage:
    return Usage(
        requests=1,
        prompt_tokens=event.num_prompt_tokens,
        computed_tokens=event.num_prompt_tokens - event.num_cached_tokens,
        generated_tokens=event.num_generated_tokens,
    )
