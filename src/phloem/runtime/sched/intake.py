"""From a Submit to a request and its sequences, or to the reason why not."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from phloem.core.digest import shared_namespace
from phloem.core.errors import CallerError, ContextLengthExceeded, InvalidRequest
from phloem.core.wire import Submit
from phloem.memory.ledger.keys import encode_tokens
from phloem.runtime.sched.seeds import sequence_seed
from phloem.runtime.sched.sequence import Request, Sequence

MAX_TOKEN_ID = 2**31 - 1


class Intake:
    """Gives requests and sequences their serial numbers, seeds, namespaces and limits."""

    def __init__(
        self,
        *,
        pool_tokens: int,
        max_model_len: int,
        eos_token_ids: Seq[int],
        seed: int,
        prefix_cache: bool,
        is_pipelined: bool,
    ) -> None:
        self.max_prompt_len = min(max_model_len, pool_tokens) - 1
        self._max_known = min(max_model_len, pool_tokens + 1)  # the last token is never computed, so it needs no page
        self._eos_token_ids = frozenset(eos_token_ids)
        self._seed = seed
        self._prefix_cache = prefix_cache
        self._is_pipelined = is_pipelined
        self._num_requests = self._num_sequences = 0

    def refusal(self, submit: Submit) -> CallerError | None:
        """What is wrong with a request that can never be served."""
        prompt = submit.prompt
        if not prompt or min(prompt) < 0 or max(prompt) > MAX_TOKEN_ID:
            return InvalidRequest("the prompt is empty or has a token id out of range", field="prompt")
        if submit.sampling.n < 1:
            return InvalidRequest("n must be at least 1", field="n")
        if len(prompt) > self.max_prompt_len:
            allowed = f"context and KV memory allow {self.max_prompt_len}"
            return ContextLengthExceeded(f"the prompt has {len(prompt)} tokens; {allowed}", field="prompt")
        return None

    def accept(self, submit: Submit, now_s: float) -> Request:
        """A request with one sequence a choice. Without the prefix cache each request is a namespace of its own: its
        choices still share."""
        serial, self._num_requests = self._num_requests, self._num_requests + 1
        request = Request(submit, arrived_s=now_s)
        key = encode_tokens(submit.prompt)
        namespace = shared_namespace(submit.namespace) if self._prefix_cache else f"request:{serial}"
        for choice in range(submit.sampling.n):
            seed = sequence_seed(
                request_seed=submit.sampling.seed, engine_seed=self._seed, request_serial=serial, choice=choice
            )
            sequence = Sequence(
                request,
                choice=choice,
                sequence_id=self._num_sequences,
                seed=seed,
                key=key,
                namespace=namespace,
                max_known=self._max_known,
                eos_token_ids=self._eos_token_ids,
                is_pipelined=self._is_pipelined,
            )
            request.sequences.append(sequence)
            self._num_sequences += 1
        return request
