"""llama.cpp through the C functions that llama-cpp-python binds: continuous batching as its own server does it.

`python -m bench.runners.llama_runner MODEL.gguf THREADS`. A sequence a request, prompts in chunks of `BATCH` tokens
beside the decoding rows, argmax over the logits with numpy. Requests of their own get a KV stream each (`kv_unified`
off: no row attends over other rows' masked cells, measured 2.4 times the tokens a CPU second); those below a shared
prefix get one buffer, where the prefix is computed once and its cells belong to all (measured 1.2 times).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as lib

from bench.runners.protocol import Outcome, Prompts, serve

BATCH = 512
MIN_LENGTH = 1280
"""Tokens a sequence has room for at least: a context is then made in the warm-up and never in a timed repetition."""


@dataclass
class Request:
    """One request: what is still to compute, and what came out."""

    index: int
    pending: list[int]
    wanted: int
    position: int = 0
    output: list[int] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.output) >= self.wanted


class LlamaEngine:
    """A model and a context, made anew only when the number of sequences changes or their room does not suffice."""

    def __init__(self, path: str, threads: int) -> None:
        lib.llama_backend_init()
        self._threads = threads
        self._model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._num_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._context: object | None = None
        self._shape = (0, 0, False)
        self._batch = lib.llama_batch_init(BATCH, 0, 1)

    def batch(self, prompts: Prompts, max_tokens: Sequence[int], shared_prefix: int) -> Outcome:
        """Continuous batching until every sequence has its tokens."""
        outcome, _ = self._run(prompts, max_tokens, shared_prefix)
        return Outcome(outputs=outcome, note="prefix computed once, its cells shared" if shared_prefix else "")

    def stream(self, prompt: Sequence[int], max_tokens: int) -> Outcome:
        """One sequence."""
        outputs, first_token_s = self._run([prompt], [max_tokens], 0)
        return Outcome(outputs=outputs, first_token_s=first_token_s, note="first token timed in the loop")

    def _run(self, prompts: Prompts, max_tokens: Sequence[int], shared_prefix: int) -> tuple[list[list[int]], float]:
        started_s = time.perf_counter()
        longest = max(len(prompt) + wanted for prompt, wanted in zip(prompts, max_tokens, strict=True))
        context = self._prepare(len(prompts), longest, is_unified=shared_prefix > 0)
        rows = [
            Request(index=index, pending=list(prompt), wanted=wanted)
            for index, (prompt, wanted) in enumerate(zip(prompts, max_tokens, strict=True))
        ]
        if shared_prefix:
            self._share(context, rows, shared_prefix)
        first_token_s = 0.0
        while active := [row for row in rows if not row.is_done]:
            self._step(context, active)
            if not first_token_s and any(row.output for row in active):
                first_token_s = time.perf_counter() - started_s
        return [row.output for row in rows], first_token_s

    def _prepare(self, num_sequences: int, tokens: int, *, is_unified: bool) -> object:
        """An empty context with room for `tokens` in each sequence."""
        num_old, room, was_unified = self._shape
        if self._context is None or (num_old, was_unified) != (num_sequences, is_unified) or room < tokens:
            if self._context is not None:
                lib.llama_free(self._context)
            length = max(MIN_LENGTH, -(-tokens // 256) * 256)
            params = lib.llama_context_default_params()
            params.n_ctx = length * num_sequences
            params.n_seq_max = num_sequences
            params.n_batch = params.n_ubatch = BATCH
            params.n_threads = params.n_threads_batch = self._threads
            params.kv_unified = is_unified
            self._context = lib.llama_init_from_model(self._model, params)
            if not self._context:
                raise SystemExit("llama.cpp cannot make a context")
            self._shape = (num_sequences, length, is_unified)
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        return self._context

    def _share(self, context: object, rows: list[Request], shared_prefix: int) -> None:
        first = rows[0]
        rest, first.pending = first.pending[shared_prefix:], first.pending[:shared_prefix]
        while first.pending:
            self._step(context, [first], wants_logits=False)
        first.pending = rest
        for row in rows[1:]:
            lib.llama_memory_seq_cp(lib.llama_get_memory(context), 0, row.index, -1, -1)
            row.pending = row.pending[shared_prefix:]
            row.position = shared_prefix

    def _step(self, context: object, rows: list[Request], *, wants_logits: bool = True) -> None:
        """One llama_decode: a token of every decoding row, then as much of the waiting prompts as fits."""
        batch, used, sampled = self._batch, 0, []
        for row in sorted(rows, key=lambda row: len(row.pending) > 1):
            take = min(len(row.pending), BATCH - used)
            for offset, token in enumerate(row.pending[:take]):
                batch.token[used] = token
                batch.pos[used] = row.position + offset
                batch.n_seq_id[used] = 1
                batch.seq_id[used][0] = row.index
                batch.logits[used] = 0
                used += 1
            row.pending = row.pending[take:]
            row.position += take
            if take and not row.pending and wants_logits:
                batch.logits[used - 1] = 1
                sampled.append((row, used - 1))
        batch.n_tokens = used
        if lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        if not sampled:
            lib.llama_synchronize(context)
        for row, index in sampled:
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, index), shape=(self._num_vocab,))
            token = int(logits.argmax())
            row.output.append(token)
            row.pending = [token]


def main() -> None:
    """Load MODEL with THREADS and serve."""
    path, threads = sys.argv[1], int(sys.argv[2])
    features = lib.llama_print_system_info().decode()
    serve(
        "llama",
        lambda: (
            LlamaEngine(path, threads),
            {"llama-cpp-python": llama_cpp.__version__},
            f"weights as in the GGUF; {features}",
        ),
    )


if __name__ == "__main__":
    main()
