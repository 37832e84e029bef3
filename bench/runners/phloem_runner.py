"""This engine, through its offline API. `python -m bench.runners.phloem_runner MODEL THREADS`.

`LLM.generate` returns when all is done, so a first token is timed by a call of its own: the same prompt backwards, one
token. It is as long and as cold as the prompt itself, and the time includes everything up to the returned output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib import metadata

from bench.runners.protocol import Engine, Outcome, Prompts, serve


class PhloemEngine:
    """`phloem.LLM`; the prefix cache finds a shared prefix by itself."""

    def __init__(self, model: str, threads: int) -> None:
        from phloem import LLM

        self._llm = LLM(model=model, threads=threads)
        self.memory = self._llm.memory

    def batch(self, prompts: Prompts, max_tokens: Sequence[int], shared_prefix: int) -> Outcome:
        """All prompts in one call."""
        outputs, cached = self._generate(prompts, max_tokens)
        note = f"{cached} prompt tokens of {sum(map(len, prompts))} from the cache" if shared_prefix else ""
        return Outcome(outputs=outputs, note=note)

    def stream(self, prompt: Sequence[int], max_tokens: int) -> Outcome:
        """One prompt, after its mirror image has told the time of a first token."""
        started_s = time.perf_counter()
        self._generate([prompt[::-1]], [1])
        first_s = time.perf_counter()
        outputs, _ = self._generate([prompt], [max_tokens])
        return Outcome(
            outputs=outputs,
            first_token_s=first_s - started_s,
            total_s=time.perf_counter() - first_s,
            note="first token: a call of one token",
        )

    def _generate(self, prompts: Prompts, max_tokens: Sequence[int]) -> tuple[list[list[int]], int]:
        """(ids of each, prompt tokens found in the cache)."""
        from phloem import SamplingParams

        params = [SamplingParams(temperature=0.0, max_tokens=wanted, ignore_eos=True) for wanted in max_tokens]
        outputs = self._llm.generate([list(prompt) for prompt in prompts], params, progress=False)
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        return ids, sum(output.usage.cached_tokens for output in outputs)


def load(model: str, threads: int) -> tuple[Engine, dict[str, str], str]:
    """The engine, its versions, its choices."""
    import torch

    engine = PhloemEngine(model, threads)
    return (
        engine,
        {"phloem": _version(), "torch": torch.__version__},
        "defaults: weights as in the GGUF, prefix cache on",
    )


def _version() -> str:
    try:
        return metadata.version("phloem")
    except metadata.PackageNotFoundError:
        return "from the source tree"


if __name__ == "__main__":
    serve("phloem", lambda: load(sys.argv[1], int(sys.argv[2])))
