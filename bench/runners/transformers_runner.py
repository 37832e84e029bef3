"""transformers, its model called in the plainest loop that is fast.

`python -m bench.runners.transformers_runner FOLDER THREADS`.
It has no scheduler: a batch is padded on the left, decoded together, and shrinks as rows reach their length. A shared
prefix is computed once and its cache repeated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.runners.protocol import Engine, Outcome, Prompts, serve

SHRINK_EVERY = 16
"""Decode steps between two removals of finished rows: removing copies the whole cache."""


class TransformersEngine:
    """A causal language model in bfloat16 with torch's own attention."""

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache

        torch.set_num_threads(threads)
        self._torch = torch
        self._new_cache = DynamicCache
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        self._model = model.eval()

    def batch(self, prompts: Prompts, max_tokens: Sequence[int], shared_prefix: int) -> Outcome:
        """One padded batch, longest outputs first."""
        order = sorted(range(len(prompts)), key=lambda index: -max_tokens[index])
        with self._torch.inference_mode():
            outputs, _ = self._run([prompts[i] for i in order], [max_tokens[i] for i in order], shared_prefix)
        back = dict(zip(order, outputs, strict=True))
        note = "prefix computed once, its cache repeated" if shared_prefix else "one padded batch"
        return Outcome(outputs=[back[index] for index in range(len(prompts))], note=note)

    def stream(self, prompt: Sequence[int], max_tokens: int) -> Outcome:
        """One row."""
        with self._torch.inference_mode():
            outputs, first_token_s = self._run([prompt], [max_tokens], 0)
        return Outcome(outputs=outputs, first_token_s=first_token_s, note="first token timed in the loop")

    def _run(self, prompts: Prompts, max_tokens: Sequence[int], shared_prefix: int) -> tuple[list[list[int]], float]:
        """Rows must be in falling order of `max_tokens`, so that the finished ones are always the last."""
        torch, started_s = self._torch, time.perf_counter()
        cache: Any = self._new_cache()
        if shared_prefix:
            shared = torch.tensor([list(prompts[0][:shared_prefix])])
            self._model(shared, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(prompts))
        tails = [list(prompt[shared_prefix:]) for prompt in prompts]
        width = max(map(len, tails))
        ids = torch.tensor([[0] * (width - len(tail)) + tail for tail in tails])
        mask = torch.tensor([[1] * shared_prefix + [0] * (width - len(t)) + [1] * len(t) for t in tails])
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
        outputs: list[list[int]] = [[] for _ in prompts]
        first_token_s, rows = 0.0, len(prompts)
        for step in range(max(max_tokens)):
            padding = None if rows == 1 else mask
            logits = self._model(
                ids,
                attention_mask=padding,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            chosen = logits[:, -1].argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                if len(outputs[row]) < max_tokens[row]:
                    outputs[row].append(token)
            first_token_s = first_token_s or time.perf_counter() - started_s
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
            alive = sum(wanted > step + 1 for wanted in max_tokens)
            if alive and alive < rows and (step + 1) % SHRINK_EVERY == 0:
                keep, rows = torch.arange(alive), alive
                cache.batch_select_indices(keep)
                ids, positions, mask = ids[:alive], positions[:alive], mask[:alive]
        return outputs, first_token_s


def load(folder: str, threads: int) -> tuple[Engine, dict[str, str], str]:
    """The engine, its versions, its choices."""
    import torch
    import transformers

    engine = TransformersEngine(folder, threads)
    return (
        engine,
        {"transformers": transformers.__version__, "torch": torch.__version__},
        "bfloat16, sdpa, static batch",
    )


if __name__ == "__main__":
    serve("transformers", lambda: load(sys.argv[1], int(sys.argv[2])))
