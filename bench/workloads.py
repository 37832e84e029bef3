"""The workloads (a) to (d): prompts, lengths, metrics, and what the machine allows.

Every prompt is random ids from a seed, the same for every engine. Lengths depend on the seed 0 alone; the ids differ
from one repetition to the next, so that no engine finds a repetition's prompt in its cache: each repetition is cold.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from bench.machine import Machine
from bench.model import BenchModel

LOW_ID, HIGH_ID = 100, 40_000
"""Ids that are ordinary text in every vocabulary measured: no control tokens."""

WARM_UP = -1
"""The repetition that is not counted: same lengths of prompts, short outputs."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked for at once. `shared_prefix` tokens at the start of every prompt are the same."""

    prompts: list[list[int]]
    max_tokens: list[int]
    shared_prefix: int = 0
    timed_stream: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A runner's answer (runners/protocol.py)."""

    total_s: float
    outputs: list[list[int]]
    first_token_s: float | None = None
    note: str = ""

    @property
    def first_s(self) -> float:
        """Seconds to the first token; only of a timed stream."""
        assert self.first_token_s is not None
        return self.first_token_s


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A number made of one repetition, and its floor on a machine (the best that bytes and FLOPs allow), same unit."""

    name: str
    unit: str
    of: Callable[[Batch, Outcome], float]
    floor: Callable[[Batch, BenchModel, Machine], float]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A named batch a repetition and the metrics taken from it."""

    name: str
    title: str
    batch: Callable[[int], Batch]
    metrics: tuple[Metric, ...]

    def warm_up(self) -> Batch:
        """The same shapes of prompt with outputs of at most 8 tokens."""
        batch = self.batch(WARM_UP)
        return msgspec.structs.replace(batch, max_tokens=[min(8, wanted) for wanted in batch.max_tokens])


def single(repetition: int, *, prompt: int = 128, output: int = 128) -> Batch:
    """(a) one stream."""
    ids = _ids("single", repetition)
    return Batch(prompts=[ids(prompt)], max_tokens=[output], timed_stream=True)


def prefill(repetition: int, *, prompt: int = 1024) -> Batch:
    """(b) one long prompt, one token."""
    return Batch(prompts=[_ids("prefill", repetition)(prompt)], max_tokens=[1], timed_stream=True)


def offline(repetition: int, *, requests: int = 32) -> Batch:
    """(c) requests of mixed length: inputs 100 to 512, outputs 64 to 256, uniform, seed 0."""
    lengths, ids = random.Random(0), _ids("offline", repetition)
    inputs = [lengths.randint(100, 512) for _ in range(requests)]
    outputs = [lengths.randint(64, 256) for _ in range(requests)]
    return Batch(prompts=[ids(length) for length in inputs], max_tokens=outputs)


def shared(repetition: int, *, requests: int = 32, prefix: int = 1024, question: int = 32, output: int = 32) -> Batch:
    """(d) requests below one long prefix."""
    ids = _ids("shared", repetition)
    start = ids(prefix)
    return Batch(
        prompts=[start + ids(question) for _ in range(requests)],
        max_tokens=[output] * requests,
        shared_prefix=prefix,
    )


def _ids(workload: str, repetition: int) -> Callable[[int], list[int]]:
    source = random.Random(f"{workload}/{repetition}")
    return lambda length: [source.randrange(LOW_ID, HIGH_ID) for _ in range(length)]


def work_floor_s(batch: Batch, model: BenchModel, machine: Machine) -> float:
    """Seconds that a batch needs at the measured peaks, arithmetic and reading perfectly overlapped.

    Arithmetic: two FLOPs for each element of the linears and each token, the LM head for each sampled token,
    attention's two products over the causal context. Reading: all weights once for each step of the longest output,
    and for every sampled token the keys and values it attends to, a shared prefix once a step.
    """
    tokens = sum(len(prompt) for prompt in batch.prompts) - batch.shared_prefix * (len(batch.prompts) - 1)
    sampled = sum(batch.max_tokens)
    decoded = sampled - len(batch.max_tokens)
    context_pairs = _prefill_pairs(batch) + sum(
        _decode_context(len(prompt), wanted) for prompt, wanted in zip(batch.prompts, batch.max_tokens, strict=True)
    )
    flops = 2 * model.linear_params * (tokens + decoded) + 2 * model.head_params * sampled
    flops += 4 * model.num_layers * model.num_heads * model.head_dim * context_pairs
    steps = max(batch.max_tokens)
    kv_tokens = sum(
        _decode_context(len(prompt) - batch.shared_prefix, wanted)
        for prompt, wanted in zip(batch.prompts, batch.max_tokens, strict=True)
    )
    kv_tokens += batch.shared_prefix * (steps - 1)
    read = steps * model.file_bytes + kv_tokens * model.kv_bytes_per_token
    return max(flops / machine.bf16_flops_per_s, read / machine.read_bytes_per_s)


def _decode_context(prompt: int, wanted: int) -> int:
    """Keys read, over all decode steps of a request: step i (from 1) attends to prompt + i of them."""
    return sum(prompt + step for step in range(1, wanted))


def _prefill_pairs(batch: Batch) -> int:
    """Query-key pairs of all prompts under the causal mask, a shared prefix once."""
    prefix = batch.shared_prefix
    whole = sum(len(prompt) * (len(prompt) + 1) // 2 for prompt in batch.prompts)
    return whole - (len(batch.prompts) - 1) * prefix * (prefix + 1) // 2


def _first_token_floor_s(batch: Batch, model: BenchModel, machine: Machine) -> float:
    return work_floor_s(msgspec.structs.replace(batch, max_tokens=[1] * len(batch.prompts)), model, machine)


def _decode_floor(batch: Batch, model: BenchModel, machine: Machine) -> float:
    steps = batch.max_tokens[0] - 1
    kv_bytes = _decode_context(len(batch.prompts[0]), batch.max_tokens[0]) * model.kv_bytes_per_token
    return steps / ((steps * model.file_bytes + kv_bytes) / machine.read_bytes_per_s)


def _output_rate(batch: Batch, outcome: Outcome) -> float:
    return sum(batch.max_tokens) / outcome.total_s


def _output_rate_floor(batch: Batch, model: BenchModel, machine: Machine) -> float:
    return sum(batch.max_tokens) / work_floor_s(batch, model, machine)


TTFT = Metric(name="ttft", unit="s", of=lambda _, outcome: outcome.first_s, floor=_first_token_floor_s)
DECODE = Metric(
    name="decode",
    unit="tok/s",
    of=lambda batch, outcome: (batch.max_tokens[0] - 1) / (outcome.total_s - outcome.first_s),
    floor=_decode_floor,
)
PREFILL = Metric(
    name="prefill",
    unit="tok/s",
    of=lambda batch, outcome: len(batch.prompts[0]) / outcome.first_s,
    floor=lambda batch, model, machine: len(batch.prompts[0]) / _first_token_floor_s(batch, model, machine),
)
OUTPUT = Metric(name="output", unit="tok/s", of=_output_rate, floor=_output_rate_floor)

WORKLOADS: dict[str, Workload] = {
    work.name: work
    for work in (
        Workload(name="single", title="(a) 128-token prompt, 128 greedy tokens", batch=single, metrics=(TTFT, DECODE)),
        Workload(name="prefill", title="(b) 1,024-token prompt", batch=prefill, metrics=(PREFILL,)),
        Workload(name="offline", title="(c) 32 requests, 100-512 in, 64-256 out", batch=offline, metrics=(OUTPUT,)),
        Workload(name="shared", title="(d) 32 requests below a 1,024-token prefix", batch=shared, metrics=(OUTPUT,)),
    )
}


def tiny(workload: Workload) -> Workload:
    """The same workload at sizes that only show that every part works; its numbers mean nothing."""
    small: dict[str, Callable[[int], Batch]] = {
        "single": lambda repetition: single(repetition, prompt=16, output=8),
        "prefill": lambda repetition: prefill(repetition, prompt=64),
        "offline": lambda repetition: _shorten(offline(repetition, requests=4)),
        "shared": lambda repetition: shared(repetition, requests=4, prefix=64, question=8, output=4),
    }
    return msgspec.structs.replace(
        workload, batch=small[workload.name], title=workload.title + " (tiny: no measurement)"
    )


def _shorten(batch: Batch) -> Batch:
    short: Sequence[list[int]] = [prompt[: len(prompt) // 8] for prompt in batch.prompts]
    return Batch(prompts=list(short), max_tokens=[wanted // 16 for wanted in batch.max_tokens])
