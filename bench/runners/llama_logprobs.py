"""llama.cpp's log-probabilities of given tokens: `python -m bench.runners.llama_logprobs MODEL.gguf`.

Reads a JSON list of prompts (lists of ids) from standard input, writes one list a prompt: for each token but the first,
[its natural log-probability, the most likely id at its place]. Each prompt is one batch in an empty context.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from llama_cpp import Llama


def main() -> None:
    model = Llama(model_path=sys.argv[1], n_ctx=2048, n_batch=512, logits_all=True, verbose=False, n_threads=2)
    scored = []
    for prompt in json.load(sys.stdin):
        model.reset()
        model.eval(prompt)
        logits = model.scores[: len(prompt) - 1].astype(np.float64)
        top = logits.max(axis=-1, keepdims=True)
        logprobs = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
        chosen = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
        scored.append([[float(value), int(best)] for value, best in zip(chosen, logits.argmax(axis=-1), strict=True)])
    json.dump(scored, sys.stdout)


if __name__ == "__main__":
    main()
