"""How far each way of computing is from float32 on the same file: `python -m bench.accuracy [--model M] [--write]`.

Scores the same text token by token with float32 activations on the CPU (the reference), then in other ways, and with
llama.cpp where its venv is installed; and lets each way continue every window greedily. Prints, for each, the mean and
the largest difference of a token's log-probability, the share of places where the most likely token is the same, the
difference of log-perplexity, how many of the flips happen where the reference itself is decided by more than 0.1 nat,
and how far the greedy answers agree: the share of tokens before the first that differs, and by how much the reference
was decided there.

On a machine with a GPU: `--ways gpu --reference FILE`, with what `--save-reference FILE` wrote on the CPU.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, rows
from bench.rows import Context, Series
from phloem import LLM, SamplingParams
from phloem.core.request import TokenLogprob
from phloem.launch.models import locate
from phloem.serve.text.load import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
LLAMA = ROOT / ".peers" / "llama" / "bin" / "python"
REFERENCE = {"dtype": "float32", "device": "cpu"}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {name: {"dtype": name, "device": "cpu"} for name in ("bfloat16", "auto")},
    "gpu": {
        "bfloat16": {},
        "float16": {"dtype": "float16"},
        "deterministic": {"deterministic": True},
        "fp8 cache": {"kv_cache_dtype": "fp8"},
        "fp8 weights": {"quantize": "fp8"},
        "fp8 both": {"quantize": "fp8", "kv_cache_dtype": "fp8"},
    },
}
"""Options by name; the last of each is the one that the others stand beside in the result file."""
NUM_WINDOWS, WINDOW, NUM_GREEDY = 12, 256, 64
DECIDED_NATS = 0.1
SAVED = ("chosen", "best", "lead", "greedy", "greedy_lead")
SOURCES = (json, textwrap, os, argparse, inspect, subprocess, shlex, np.linalg)


@dataclass(frozen=True)
class Scores:
    """Of every scored place: the log-probability of the text's token, the likeliest id, and its lead over the next.
    Of every window's greedy continuation the same two: `greedy` ids and `greedy_lead`, [windows, NUM_GREEDY]."""

    chosen: np.ndarray
    best: np.ndarray
    lead: np.ndarray
    greedy: np.ndarray | None = None
    greedy_lead: np.ndarray | None = None


def windows(path: Path) -> list[list[int]]:
    """Text of the standard library's documentation, as ids of the model's own tokenizer."""
    text = "\n\n".join(inspect.getdoc(member) or "" for source in SOURCES for _, member in inspect.getmembers(source))
    ids = load_tokenizer(path).encode(text)
    return [ids[start : start + WINDOW] for start in range(0, NUM_WINDOWS * WINDOW, WINDOW)]


def score(model: str, options: Mapping[str, Any], prompts: Sequence[list[int]]) -> Scores:
    """By this engine, every window cold."""
    scoring = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    answering = SamplingParams(temperature=0, max_tokens=NUM_GREEDY, ignore_eos=True, logprobs=2)
    with LLM(model, memory_gb=1, max_model_len=1024, **options) as llm:
        print(f"  {options}: {llm.memory}", file=sys.stderr, flush=True)
        scored = llm.generate([list(prompt) for prompt in prompts], scoring, progress=False)
        answers = [out.outputs[0] for out in llm.generate([*map(list, prompts)], answering, progress=False)]
    places = [entry for output in scored for entry in output.prompt_logprobs or () if entry is not None]
    return Scores(
        chosen=np.array([entry.logprob for entry in places]),
        best=np.array([entry.top[0][0] for entry in places]),
        lead=np.array([lead(entry) for entry in places]),
        greedy=np.array([answer.token_ids for answer in answers]),
        greedy_lead=np.array([[lead(entry) for entry in answer.logprobs or ()] for answer in answers]),
    )


def lead(entry: TokenLogprob) -> float:
    """By how many nats the likeliest token leads."""
    return entry.top[0][1] - entry.top[1][1]


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
    if scores.greedy is not None and reference.greedy is not None and reference.greedy_lead is not None:
        found |= agreement(scores.greedy, reference.greedy, reference.greedy_lead)
    return [
        Series(workload="accuracy", metric=metric, unit=unit, engine=engine, values=(value,))
        for metric, (value, unit) in found.items()
    ]


def agreement(ours: np.ndarray, theirs: np.ndarray, leads: np.ndarray) -> dict[str, tuple[float, str]]:
    """Of greedy answers: tokens before the first difference, and how decided the reference was where it is."""
    differs = ours != theirs
    before = np.where(differs.any(axis=1), differs.argmax(axis=1), ours.shape[1])
    at_flip = [float(leads[row, place]) for row, place in enumerate(before) if place < ours.shape[1]]
    return {
        "same_greedy_tokens": (float(100 * before.sum() / ours.size), "%"),
        "answers_that_flip": (float(len(at_flip)), "answers"),
        "lead_at_first_flip": (max(at_flip, default=0.0), "nat"),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--model", default="default", help="as for phloem serve")
    parser.add_argument("--write", metavar="NAME", help="write bench/results/<date>-accuracy-NAME.json")
    parser.add_argument("--ways", choices=list(WAYS), default="cpu", help="which ways to compare")
    parser.add_argument(
        "--save-reference", metavar="FILE", type=Path, help="write the reference's scores there, no more"
    )
    parser.add_argument("--reference", metavar="FILE", type=Path, help="scores of the reference, and what it scored")
    options = parser.parse_args(argv)
    if options.reference:
        stored = np.load(options.reference)
        prompts, reference = stored["prompts"].tolist(), Scores(**{name: stored[name] for name in SAVED})
    else:
        location = locate(options.model)
        assert isinstance(location.path, Path), "accuracy needs a file to score"
        prompts = windows(location.path)
        reference = score(options.model, REFERENCE, prompts)
    if options.save_reference:
        np.savez_compressed(
            options.save_reference, prompts=prompts, **{name: getattr(reference, name) for name in SAVED}
        )
        return 0
    ways = {f"phloem {name}": way for name, way in WAYS[options.ways].items()}
    found = [one for name, way in ways.items() for one in compare(name, score(options.model, way, prompts), reference)]
    if LLAMA.exists() and options.ways == "cpu" and location.path.suffix == ".gguf":
        found += compare("llama", score_llama(location.path, prompts), reference)
    best = list(ways)[-1]
    print(f"{options.model}: {len(reference.chosen)} places against float32")
    print(rows.table(found, ours=best, floors={}))
    if options.write:
        context = Context(
            machine=machine.measure(os.cpu_count() or 1).describe(),
            command=shlex.join(["python", "-m", "bench.accuracy", *(sys.argv[1:] if argv is None else argv)]),
            versions={"python": sys.version.split()[0]},
            date=rows.now(),
            commit=rows.current_commit(),
        )
        ours, others = ([one for one in found if (one.engine == best) is mine] for mine in (True, False))
        print(
            rows.write(
                rows.make_rows(ours, others, floors={}, context=context), found, workload=f"accuracy-{options.write}"
            )
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
