"""How far each way of computing is from float32 on the same file: `python -m bench.accuracy [--model M] [--write]`.

Scores the same text token by token with float32 activations (the reference), bfloat16 and the default, and with
llama.cpp where its venv is installed. Prints, for each, the mean and the largest difference of a token's
log-probability, the share of places where the most likely token is the same, the difference of log-perplexity, and how
many of the flips happen where the reference itself is decided by more than 0.1 nat.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import machine, rows
from bench.rows import Context, Series
from phloem import LLM, SamplingParams
from phloem.launch.models import locate
from phloem.serve.text.load import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
LLAMA = ROOT / ".peers" / "llama" / "bin" / "python"
REFERENCE, WAYS = "float32", ("bfloat16", "auto")
NUM_WINDOWS, WINDOW = 12, 256
DECIDED_NATS = 0.1
SOURCES = (json, textwrap, os, argparse, inspect, subprocess, shlex, np.linalg)


@dataclass(frozen=True)
class Scores:
    """Of every scored place: the log-probability of the text's token, the likeliest id, and its lead over the next."""

    chosen: np.ndarray
    best: np.ndarray
    lead: np.ndarray


def windows(path: Path) -> list[list[int]]:
    """Text of the standard library's documentation, as ids of the model's own tokenizer."""
    text = "\n\n".join(inspect.getdoc(member) or "" for source in SOURCES for _, member in inspect.getmembers(source))
    ids = load_tokenizer(path).encode(text)
    return [ids[start : start + WINDOW] for start in range(0, NUM_WINDOWS * WINDOW, WINDOW)]


def score(model: str, dtype: str, prompts: Sequence[list[int]]) -> Scores:
    """By this engine, every window cold."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    with LLM(model, dtype=dtype, memory_gb=1, max_model_len=1024) as llm:
        outputs = llm.generate([list(prompt) for prompt in prompts], params, progress=False)
    places = [entry for output in outputs for entry in output.prompt_logprobs or () if entry is not None]
    leads = [entry.top[0][1] - entry.top[1][1] for entry in places]
    return Scores(
        chosen=np.array([entry.logprob for entry in places]),
        best=np.array([entry.top[0][0] for entry in places]),
        lead=np.array(leads),
    )


def score_llama(path: Path, prompts: Sequence[list[int]]) -> Scores:
    """By llama.cpp, in a process of its own venv."""
    done = subprocess.run(
        [str(LLAMA), "-m", "bench.runners.llama_logprobs", str(path)],
        input=json.dumps(prompts), capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    places = [place for prompt in json.loads(done.stdout) for place in prompt]
    return Scores(
        chosen=np.array([place[0] for place in places]),
        best=np.array([place[1] for place in places]),
        lead=np.zeros(len(places)),
    )


def compare(engine: str, scores: Scores, reference: Scores) -> list[Series]:
    """One series a metric."""
    difference = np.abs(scores.chosen - reference.chosen)
    flips = scores.best != reference.best
    found = {
        "mean_logprob_error": (float(difference.mean()), "nat"),
        "max_logprob_error": (float(difference.max()), "nat"),
        "log_perplexity_change": (float((reference.chosen - scores.chosen).mean()), "nat"),
        "same_top_token": (float(100 * (~flips).mean()), "%"),
        "flips_where_decided": (float((flips & (reference.lead > DECIDED_NATS)).sum()), "places"),
    }
    return [
        Series(workload="accuracy", metric=metric, unit=unit, engine=engine, values=(value,))
        for metric, (value, unit) in found.items()
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--model", default="default", help="as for phloem serve")
    parser.add_argument("--write", metavar="NAME", help="write bench/results/<date>-accuracy-NAME.json")
    options = parser.parse_args(argv)
    location = locate(options.model)
    assert isinstance(location.path, Path), "accuracy needs a file to score"
    prompts = windows(location.path)
    reference = score(options.model, REFERENCE, prompts)
    found = [one for way in WAYS for one in compare(f"phloem {way}", score(options.model, way, prompts), reference)]
    if LLAMA.exists() and location.path.suffix == ".gguf":
        found += compare("llama", score_llama(location.path, prompts), reference)
    print(f"{location.name}: {len(reference.chosen)} places against {REFERENCE}")
    print(rows.table(found, ours="phloem auto", floors={}))
    if options.write:
        context = Context(
            machine=machine.measure(os.cpu_count() or 1).describe(),
            command=shlex.join(["python", "-m", "bench.accuracy", *(sys.argv[1:] if argv is None else argv)]),
            versions={"python": sys.version.split()[0]},
            date=rows.now(),
            commit=rows.current_commit(),
        )
        ours, others = ([one for one in found if (one.engine == "phloem auto") is mine] for mine in (True, False))
        print(
            rows.write(
                rows.make_rows(ours, others, floors={}, context=context), found, workload=f"accuracy-{options.write}"
            )
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
