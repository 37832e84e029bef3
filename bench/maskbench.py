"""MaskBench's schemas against the compiled grammars: every valid instance accepted, every invalid one rejected?

    python -m bench.maskbench            all schemas, in parallel; writes bench/results/<date>-maskbench.json

A valid instance is accepted when each of its tokens (as the default model's tokenizer writes `json.dumps` of it) is
in the mask at its place, and an end token is in the one after. An invalid one is rejected when one of them is not.
Where the grammar forces a text, its mask holds one spelling of it; another spelling that the grammar takes is accepted,
and counted. What llguidance's own tests publish about a schema (expected_maskbench.json) is what we are held to: a
schema it cannot compile is refused with that reason, and nothing else may differ. The data
(guidance-ai/jsonschemabench) is looked for in ../shared/data.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher

from bench import machine, rows
from bench.rows import Series
from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint
from phloem.launch.models import locate
from phloem.launch.text import tokenizer_json_of
from phloem.runtime.grammar.compile import Compiler, version
from phloem.runtime.grammar.matcher import Beginning, Matcher
from phloem.runtime.grammar.vocabulary import Vocabulary

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SCHEMAS, EXPECTED = DATA / "maskbench_dev.jsonl.gz", DATA / "expected_maskbench.json"
END_ID = 2
BATCH = 64


@dataclass(frozen=True)
class Outcome:
    """What became of one schema. `refused` is why it does not compile; `differs` names its instances that were judged
    otherwise than the benchmark judges them, and the first token that was not in its mask."""

    id: str
    refused: str = ""
    num_valid: int = 0
    num_invalid: int = 0
    num_tokens: int = 0
    num_respelled: int = 0
    compile_ms: float = 0.0
    differs: list[str] = field(default_factory=list)


def read_schemas(*, every: int = 1) -> list[dict[str, Any]]:
    """One of `every` schemas, with its instances."""
    with gzip.open(SCHEMAS, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for index, line in enumerate(lines) if index % every == 0]


def read_expected() -> dict[str, dict[str, str]]:
    """By schema: what llguidance publishes as failing; empty where everything is right."""
    found: dict[str, dict[str, str]] = json.loads(EXPECTED.read_text(encoding="utf-8"))
    return {name.removesuffix(".json"): entry for name, entry in found.items()}


def default_compiler() -> Compiler:
    """Grammars over the default model's vocabulary."""
    path = locate("default").path
    assert path is not None
    return Compiler(Vocabulary(tokenizer_json_of(path), 49152, (END_ID,)))


def judge(compiler: Compiler, entry: dict[str, Any]) -> Outcome:
    """Compile one schema and walk its instances."""
    began_s = time.perf_counter()
    try:
        compiled = compiler.compile(Constraint("json_schema", json.dumps(entry["schema"])))
    except InvalidRequest as error:
        return Outcome(entry["id"], refused=error.message)
    compile_ms = 1e3 * (time.perf_counter() - began_s)
    counts, num_tokens, num_respelled, differs = Counter[bool](), 0, 0, []
    for index, instance in enumerate(entry.get("tests", [])):
        text = json.dumps(instance["data"], ensure_ascii=False)
        tokens = [*compiler.tokenize(text), END_ID]
        matcher = _matcher(compiled, compiler)
        place, respelled = first_refused(matcher, tokens)
        counts[instance["valid"]] += 1
        num_tokens += len(tokens)
        num_respelled += respelled
        if (place is None) != instance["valid"]:
            what = "accepted" if place is None else f"refused at token {place} of {len(tokens)}"
            differs.append(f"test #{index}: {what}")
    return Outcome(entry["id"], "", counts[True], counts[False], num_tokens, num_respelled, compile_ms, differs)


def _matcher(compiled: LLMatcher, compiler: Compiler) -> Matcher:
    return Matcher(lambda: Beginning(compiled.deep_copy(), end_ids=compiler.end_ids, mask_size=compiler.mask_size))


def first_refused(matcher: Matcher, tokens: Sequence[int]) -> tuple[int | None, int]:
    """The place of the first token that may not follow (None when all may), and how many were spelled otherwise than
    the grammar would have forced."""
    num_respelled = 0
    for place, token in enumerate(tokens):
        mask = matcher.mask()
        matcher.accept(token)
        if matcher.fault is not None:
            return place, num_respelled
        if not (int(mask[token // 32]) >> (token % 32)) & 1:
            is_forced = int(np.unpackbits(mask.view(np.uint8)).sum()) == 1
            if not is_forced:
                return place, num_respelled
            num_respelled += 1
    return None, num_respelled


def unexpected(outcomes: Sequence[Outcome], expected: dict[str, dict[str, str]]) -> list[str]:
    """What differs from the published result, for better or worse."""
    lines = []
    for outcome in outcomes:
        published = expected.get(outcome.id, {})
        refuses, fails = "json_error" in published, "validation_error" in published
        if bool(outcome.refused) != refuses:
            lines.append(f"{outcome.id}: {outcome.refused or 'compiles'}; published: {published or 'passes'}")
        elif bool(outcome.differs) != fails:
            lines.append(f"{outcome.id}: {outcome.differs or 'passes'}; published: {published or 'passes'}")
    return lines


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The counts of a run."""
    compiled = [outcome for outcome in outcomes if not outcome.refused]
    compile_ms = np.asarray([outcome.compile_ms for outcome in compiled])
    return {
        "schemas": len(outcomes),
        "compiled": len(compiled),
        "refused": len(outcomes) - len(compiled),
        "valid_instances": sum(outcome.num_valid for outcome in compiled),
        "invalid_instances": sum(outcome.num_invalid for outcome in compiled),
        "tokens": sum(outcome.num_tokens for outcome in compiled),
        "respelled_tokens": sum(outcome.num_respelled for outcome in compiled),
        "schemas_that_differ": sum(bool(outcome.differs) for outcome in compiled),
        "compile_ms": {
            "p50": round(float(np.median(compile_ms)), 3),
            "p99": round(float(np.percentile(compile_ms, 99)), 3),
            "max": round(float(compile_ms.max()), 3),
        },
    }


def reasons(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Why schemas are refused, and how often: the part of the message before the particulars."""
    heads = (outcome.refused.split(" while ")[0][:70] for outcome in outcomes if outcome.refused)
    return dict(Counter(heads).most_common(40))


def run(*, every: int, num_processes: int) -> list[Outcome]:
    """The outcomes in the order of the schemas."""
    entries = read_schemas(every=every)
    batches = [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)]
    with ProcessPoolExecutor(num_processes) as pool:
        return [outcome for batch in pool.map(_judge_batch, batches) for outcome in batch]


class _Made:
    """One compiler a process, made when its first batch comes."""

    compiler: Compiler | None = None


def _judge_batch(entries: list[dict[str, Any]]) -> list[Outcome]:
    if _Made.compiler is None:
        _Made.compiler = default_compiler()
    return [judge(_Made.compiler, entry) for entry in entries]


def series_of(outcomes: Sequence[Outcome], surprises: Sequence[str]) -> list[Series]:
    """The run as metrics: the counts, each exception by name, and why schemas are refused."""
    found = summary(outcomes)
    compile_ms = found.pop("compile_ms")
    counts = [_series("maskbench", name, count, "count") for name, count in found.items()]
    counts.append(_series("maskbench", "unexpected", len(surprises), "count"))
    times = [_series("maskbench", f"compile_{name}", value, "ms") for name, value in compile_ms.items()]
    exceptions = [
        _series("maskbench, published as failing", f"{outcome.id}: {'; '.join(outcome.differs)}", len(outcome.differs),
                "instances")
        for outcome in outcomes
        if outcome.differs
    ]  # fmt: skip
    refused = [
        _series("maskbench, why refused", reason, count, "schemas") for reason, count in reasons(outcomes).items()
    ]
    return [*counts, *times, *exceptions, *refused]


def _series(workload: str, metric: str, value: float, unit: str) -> Series:
    return Series(workload=workload, metric=metric, unit=unit, engine="phloem", values=(value,))


def main(arguments: Sequence[str]) -> int:
    """Run and print; 0 when nothing differs from the published result."""
    parser = argparse.ArgumentParser(prog="python -m bench.maskbench", description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="one of so many (default: all); else nothing is written")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    outcomes = run(every=options.every, num_processes=options.processes)
    surprises = unexpected(outcomes, read_expected())
    series = series_of(outcomes, surprises)
    print(rows.table([one for one in series if one.workload == "maskbench"], ours="phloem", floors={}))
    print("\n".join(surprises))
    if options.every == 1:
        context = rows.Context(
            machine=machine.measure(options.processes).describe(),
            command="python -m bench.maskbench",
            versions={"llguidance": version()},
            date=rows.now(),
            commit=rows.current_commit(),
        )
        written = rows.write(rows.make_rows(series, [], floors={}, context=context), series, workload="maskbench")
        print(f"wrote {written.relative_to(rows.ROOT)}")
    return int(bool(surprises))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
