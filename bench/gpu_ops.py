"""Every CUDA kernel but attention, timed: `python -m bench.gpu_ops [NAME...]` on a machine with a GPU.

One line a case: median microseconds of a launch (captured launches replayed, so host time stays out), the bytes it must
move, and their share of the chip's copy bandwidth. Cases of few rows are bound by latency; in a step their inputs are
in the cache, as they are here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from phloem.graph.ops.model import frequencies
from phloem.kernels.triton import packed
from phloem.kernels.triton.activation import silu_mul
from phloem.kernels.triton.gather import embed, select_rows
from phloem.kernels.triton.linear import linear
from phloem.kernels.triton.norm import add_rms_norm, rms_norm
from phloem.kernels.triton.rope import rope_kv_write
from phloem.kernels.triton.row_tensors import BucketSize, RowTensors, StepTensors
from phloem.kernels.triton.rows import apply_plan, fill_inputs
from phloem.kernels.triton.sample import sample

COPY_BANDWIDTH = 4.3e12  # bytes a second, read plus written, measured on an H200
VOCAB_SIZE = 151_936  # of Qwen3
SHAPES = {"0.6B": (1024, 3072, 16, 8, 128), "14B": (5120, 17408, 40, 8, 128)}  # hidden, feed-forward, H, K, d of Qwen3
TOKENS = (1, 32, 256, 8192)

Case = tuple[str, str, int, Callable[[], object]]  # name, what, bytes, one launch


@dataclass(frozen=True)
class Timing:
    """One line of the table."""

    name: str
    what: str
    bytes: int
    microseconds: float

    @property
    def share(self) -> float:
        return self.bytes / (self.microseconds * 1e-6) / COPY_BANDWIDTH

    def __str__(self) -> str:
        rate = self.bytes / self.microseconds * 1e-6
        columns = f"{self.name:14} {self.what:34} {self.bytes / 1e6:9.2f} MB {self.microseconds:9.2f} us"
        return f"{columns} {rate:6.2f} TB/s {100 * self.share:5.0f} %"


def main(names: Sequence[str]) -> int:
    """Time the cases whose name is among `names` (default: all)."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    timings = []
    for name, what, num_bytes, launch in cases():
        if not names or name in names:
            timings.append(Timing(name, what, num_bytes, microseconds(launch)))
            print(timings[-1], flush=True)
    print(json.dumps([asdict(each) for each in timings]), file=sys.stderr)
    return 0


def microseconds(launch: Callable[[], object], *, launches: int = 20, replays: int = 15) -> float:
    """The median time of one launch: `launches` of them in a graph, replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            launch()
    times = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / launches)
    return sorted(times[2:])[len(times[2:]) // 2]


def cases() -> Iterator[Case]:
    """Everything there is to time; tensors of a case are made when its turn comes."""
    for model in SHAPES:
        for num_tokens in TOKENS:
            yield from _layer_cases(model, num_tokens)
    yield from _ends_cases()
    yield from _row_cases()
    yield from _sample_cases()


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def _integers(*shape: int, below: int) -> torch.Tensor:
    return torch.randint(0, below, shape, device="cuda", dtype=torch.int32)


def _layer_cases(model: str, num_tokens: int) -> Iterator[Case]:
    hidden, inner, num_heads, num_kv_heads, head_dim = SHAPES[model]
    what = f"{model} T={num_tokens}"
    x, residual, weight = _random(num_tokens, hidden), _random(num_tokens, hidden).float(), _random(hidden)
    size = num_tokens * hidden
    yield "add_rms_norm", what, 12 * size, partial(add_rms_norm, x, residual, weight, 1e-6)
    yield "rms_norm", what, 6 * size, partial(rms_norm, residual, weight, 1e-6)
    gate_up = _random(num_tokens, 2 * inner)
    yield "silu_mul", what, 6 * num_tokens * inner, partial(silu_mul, gate_up)
    width = (num_heads + 2 * num_kv_heads) * head_dim
    qkv, norm = _random(num_tokens, width), _random(head_dim)
    num_pages = max(64, num_tokens // 16)
    cache = torch.zeros(num_pages, 2, 16, num_kv_heads, head_dim, device="cuda", dtype=torch.bfloat16)
    slots = torch.randperm(num_pages * 16, device="cuda")[:num_tokens].int()
    positions, freq = _integers(num_tokens, below=8192), frequencies(head_dim, 1e6).cuda()
    yield (
        "rope_kv_write",
        what,
        4 * num_tokens * width,
        partial(rope_kv_write, qkv, norm, norm, 1e-6, positions, slots, freq, cache),
    )


def _ends_cases() -> Iterator[Case]:
    for model, num_tokens in (("0.6B", 256), ("14B", 256), ("14B", 8192)):
        hidden = SHAPES[model][0]
        table, token_ids = _random(VOCAB_SIZE, hidden), _integers(num_tokens, below=VOCAB_SIZE)
        what = f"{model} T={num_tokens}"
        yield "embed", what, 6 * num_tokens * hidden, partial(embed, token_ids, table)
        x, index = _random(8192, hidden), _integers(256, below=8192)
        yield "select_rows", f"{model} L=256", 4 * 256 * hidden, partial(select_rows, x, index)
        if num_tokens == 256:
            num_bytes = 2 * VOCAB_SIZE * hidden + 4 * VOCAB_SIZE * 256
            yield "linear", f"{model} head, T=256, float32", num_bytes, partial(linear, x[:256], table, None, True)


def _row_cases() -> Iterator[Case]:
    for num_rows in (1, 256):
        store = RowTensors.empty(max_rows=num_rows, max_model_len=1 << 17, max_pages=4096, device="cuda")
        store.computed.fill_(800)
        plan, size = _decode_plan(num_rows), BucketSize(num_rows, num_rows, num_rows)
        step = _step_tensors(num_rows)
        what = f"decode, {num_rows} rows at 800"
        yield "apply_plan", what, 12 * num_rows, partial(apply_plan, plan, store)
        yield "fill_inputs", what, 440 * num_rows, partial(fill_inputs, plan, store, step, size, page_size=16)


def _decode_plan(num_rows: int) -> torch.Tensor:
    rows = torch.arange(num_rows + 1, dtype=torch.int32).numpy()
    empty = rows[:0]
    adds = torch.arange(num_rows // 16, dtype=torch.int32)  # a decode row needs a page every 16th step
    pages = torch.stack([adds, torch.full_like(adds, 50), adds], 1)
    step = packed.PackedStep(
        batch_rows=rows[:-1],
        query_start=rows,
        line_tokens=rows[:-1],
        line_rows=rows[:-1],
        shared_start=rows[:1],
        shared_rows=empty,
        shared_pages=empty,
        starts=empty,
        pages=pages.numpy(),
    )
    words = torch.zeros(packed.max_words(max_rows=num_rows, max_logits=num_rows, max_pages=64), dtype=torch.int32)
    packed.pack(step, words.numpy())
    return words.cuda()


def _step_tensors(num_rows: int) -> StepTensors:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device="cuda")

    lengths = [num_rows, num_rows, num_rows, num_rows + 1, num_rows]
    after = [num_rows, num_rows, num_rows + 1, num_rows, num_rows]
    return StepTensors(*(zeros(n) for n in lengths), zeros(num_rows, 4096), *(zeros(n) for n in after))


def _sample_cases() -> Iterator[Case]:
    rules: dict[str, dict[str, float]] = {
        "greedy": {"temperature": 0.0},
        "temperature": {"temperature": 0.6},
        "top_k 50": {"temperature": 0.6, "top_k": 50},
        "top_p 0.9": {"temperature": 0.6, "top_p": 0.9},
        "min_p 0.05": {"temperature": 0.6, "min_p": 0.05},
        "all three": {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    }
    for shape, boost in (("flat", 0.0), ("peaked", 12.0)):
        for num_lines in (1, 32, 256):
            logits = _random(num_lines, VOCAB_SIZE, dtype=torch.float32)
            logits[:, :: VOCAB_SIZE // 20] += boost
            line_rows = torch.arange(num_lines, dtype=torch.int32, device="cuda")
            for rule, parameters in rules.items():
                store = _sampling_store(num_lines, {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | parameters)
                truncates = len(parameters) > 1
                yield (
                    "sample",
                    f"{shape}, L={num_lines}, {rule}",
                    4 * num_lines * VOCAB_SIZE,
                    partial(sample, logits, line_rows, store, truncates=truncates, append=False),
                )


def _sampling_store(num_rows: int, parameters: dict[str, float]) -> RowTensors:
    store = RowTensors.empty(max_rows=num_rows, max_model_len=1000, max_pages=1, device="cuda")
    words = [packed.sampling_words(**parameters, seed=row) for row in range(num_rows)]  # type: ignore[arg-type]
    store.sampling.copy_(torch.tensor(words, dtype=torch.int32))
    return store


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
