"""The server's and the offline API's judge of constraints: a sandbox around the model's tokenizer."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from phloem.core.errors import InvalidRequest, Overloaded
from phloem.core.request import Constraint
from phloem.runtime.grammar.sandbox import Sandbox
from phloem.runtime.grammar.vocabulary import Vocabulary
from phloem.serve.text.tokenizer import Tokenizer

WAIT_S = 10.0
"""For a verdict, with the trials before it and the start of a process."""


class ConstraintTrials:
    """Refuses what cannot be served before an engine hears of it. InvalidRequest names the field and the construct;
    Overloaded when too many constraints are being tried."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._sandbox = Sandbox(self._vocabulary)

    def start(self) -> None:
        """Get ready, so that the first constraint does not wait."""
        self._sandbox.start()

    async def check(self, constraint: Constraint, *, field: str) -> None:
        """Wait for the verdict in an event loop."""
        future = asyncio.wrap_future(self._sandbox.check(constraint))
        try:
            # shielded: others may wait for the same trial
            verdict = await asyncio.wait_for(asyncio.shield(future), WAIT_S)
        except TimeoutError as error:
            raise _overloaded() from error
        _raise(verdict, field=field)

    def check_now(self, constraint: Constraint, *, field: str) -> None:
        """Wait for the verdict."""
        future: Future[str] = self._sandbox.check(constraint)
        try:
            verdict = future.result(WAIT_S)
        except FutureTimeoutError as error:
            raise _overloaded() from error
        _raise(verdict, field=field)

    def close(self) -> None:
        """End the sandbox's processes."""
        self._sandbox.close()

    def _vocabulary(self) -> Vocabulary:
        tokenizer = self._tokenizer
        ends = tuple(sorted(tokenizer.eos_ids)) or (0,)  # a trial only asks whether there is a grammar
        return Vocabulary(tokenizer.to_json(), tokenizer.vocab_size, ends)


def _raise(verdict: str, *, field: str) -> None:
    if verdict:
        raise InvalidRequest(f"{field}: {verdict}", field=field)


def _overloaded() -> Overloaded:
    return Overloaded("too many new constraints are being tried; send this one again", retry_after_s=2)
