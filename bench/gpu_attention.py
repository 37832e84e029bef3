"""Attention kernels on a GPU: time, fraction of the ceiling, and agreement with the op's reference. One command:

    python -m bench.gpu_attention [--tune] [--only WORD] [--json FILE] [--write]

Every time is the median over replays of a captured graph whose calls go round several caches, together larger than the
L2 cache. Floors: bytes of keys and values at READ_TBPS, arithmetic at PEAK_TFLOPS, both measured on an H200.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import triton
from torch import Tensor

from phloem.graph.ops.lowered import paged_attention as op
from phloem.kernels.triton import attention_decode, attention_extend, attention_shared
from phloem.kernels.triton.attention import paged_attention
from phloem.kernels.triton.attention_inputs import AttentionInputs
from phloem.kernels.triton.attention_merge import merge
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.vendor import flash_attention3
from phloem.kernels.vendor.implementations import capabilities

READ_TBPS, PEAK_TFLOPS = 4.4, 792.0
CACHE_BYTES = 300e6  # the caches of one case together, at least: six times the L2
REPLAYS = 15
TOLERANCE = 2e-2  # largest error over the largest value, bfloat16


@dataclass(frozen=True)
class Case:
    """One step: a row's context and its queries, which are the last of the context; all rows share `prefix` tokens."""

    name: str
    contexts: tuple[int, ...]
    queries: tuple[int, ...]
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 16
    prefix: int = 0
    deterministic: bool = False

    @property
    def kv_bytes(self) -> int:
        """Keys and values that must be read, the shared ones once."""
        tokens = self.prefix + sum(context - self.prefix for context in self.contexts)
        return tokens * 2 * self.kv_heads * self.head_dim * 2

    @property
    def flops(self) -> int:
        """Multiply-adds of both products over the keys each query sees, times two."""
        seen = sum(queries * (2 * context - queries + 1) // 2 for context, queries in zip(self.contexts, self.queries))
        return 4 * self.heads * self.head_dim * seen

    @property
    def is_decode(self) -> bool:
        return max(self.queries) == 1

    @property
    def floor_us(self) -> float:
        return max(self.kv_bytes / READ_TBPS / 1e6, self.flops / PEAK_TFLOPS / 1e6)

    def rate(self, us: float) -> str:
        """What a time means in the unit that bounds the case."""
        return f"{self.kv_bytes / us / 1e6:6.2f} TB/s" if self.is_decode else f"{self.flops / us / 1e6:6.0f} TFLOP/s"


def cases() -> Iterator[Case]:
    """The shapes of the targets, and a batch as uneven as a served one."""
    for page_size in (16, 32, 64, 128):
        yield Case(f"decode 256 x 800, page {page_size}", (800,) * 256, (1,) * 256, page_size=page_size)
    for page_size in (16, 64):
        yield Case(f"decode 32 x 800, page {page_size}", (800,) * 32, (1,) * 32, page_size=page_size)
        yield Case(f"decode 1 x 8192, page {page_size}", (8192,), (1,), page_size=page_size)
        generator = torch.Generator().manual_seed(0)
        uneven = tuple(int(x) for x in torch.randint(100, 2049, (256,), generator=generator))
        yield Case(f"decode 256 x 100..2048, page {page_size}", uneven, (1,) * 256, page_size=page_size)
        yield Case(
            f"fixed 256 x 100..2048, page {page_size}", uneven, (1,) * 256, page_size=page_size, deterministic=True
        )
        yield Case(f"decode 14B 64 x 1500, page {page_size}", (1500,) * 64, (1,) * 64, heads=40, page_size=page_size)
        shared = (8192 + 200,) * 64
        yield Case(f"shared 64 x 8192, page {page_size}", shared, (1,) * 64, heads=40, page_size=page_size, prefix=8192)
    for head_dim, kv_heads in ((64, 8), (256, 4)):
        name, kind = f"d {head_dim}, page 16", {"heads": 4 * kv_heads, "kv_heads": kv_heads, "head_dim": head_dim}
        yield Case(f"decode 128 x 1500, {name}", (1500,) * 128, (1,) * 128, **kind)
        yield Case(f"prefill 4096, {name}", (4096,), (4096,), **kind)
    for page_size in (16, 64, 128):
        for length in (1024, 4096, 8192):
            yield Case(f"prefill {length}, page {page_size}", (length,), (length,), heads=40, page_size=page_size)
    yield Case("prefill 16 x 512, page 16", (512,) * 16, (512,) * 16, heads=16)
    yield Case("extend 8 x 256 over 8192, page 64", (8448,) * 8, (256,) * 8, heads=40, page_size=64)


@dataclass(frozen=True)
class Step:
    """Tensors of a case: one set of arguments of paged_attention for each cache."""

    case: Case
    shape: AttentionShape
    calls: tuple[tuple[Tensor | float | None, ...], ...]


def make_step(case: Case) -> Step:
    """Random queries, keys and values in pages handed out in random order."""
    device, size = torch.device("cuda"), case.page_size
    num_rows, shared_pages = len(case.contexts), case.prefix // size
    pages = [-(-context // size) for context in case.contexts]
    num_pages = sum(pages) - shared_pages * (num_rows - 1)
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(1)).int()
    table = torch.zeros(num_rows, max(pages), dtype=torch.int32)
    taken = shared_pages
    for row, count in enumerate(pages):
        table[row, :shared_pages] = order[:shared_pages]
        table[row, shared_pages:count] = order[taken : taken + count - shared_pages]
        taken += count - shared_pages
    starts = torch.tensor([0, *case.queries]).cumsum(0)
    groups = ([0, num_rows], list(range(num_rows)), [shared_pages]) if case.prefix else ([0], [], [])
    lists = (starts, torch.tensor(case.contexts), table, *(torch.tensor(values) for values in groups))
    meta = [values.to(device, torch.int32) for values in lists]
    num_tokens, max_queries = sum(case.queries), max(case.queries)
    shape = AttentionShape(
        num_rows, num_tokens, num_rows if max_queries == 1 else 0, max_queries, max(case.contexts),
        num_shared=1 if case.prefix else 0, deterministic=case.deterministic,
    )  # fmt: skip
    calls = []
    for _ in range(max(2, min(16, int(CACHE_BYTES // case.kv_bytes) + 1))):
        cache = torch.randn(num_pages, 2, size, case.kv_heads, case.head_dim, device=device, dtype=torch.bfloat16)
        q = torch.randn(num_tokens, case.heads, case.head_dim, device=device, dtype=torch.bfloat16)
        calls.append((q, cache, *meta, case.head_dim**-0.5, None))
    return Step(case, shape, tuple(calls))


Attend = Callable[[Step, tuple[Tensor | float | None, ...]], Tensor]


def ours(step: Step, call: tuple[Tensor | float | None, ...]) -> Tensor:
    return paged_attention(*call, shape=step.shape)


def peer(step: Step, call: tuple[Tensor | float | None, ...]) -> Tensor:
    """FlashAttention-3 for every row, where it is installed."""
    return flash_attention3.extend(_inputs(step, call)[0], first_row=0)


def host_us(step: Step, attend: Attend, calls: int = 50) -> float:
    """Microseconds of the host to launch one call, nothing waiting."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        attend(step, step.calls[0])
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return elapsed * 1e6 / calls


def variants(case: Case) -> Iterator[tuple[str, Attend]]:
    """Other tilings than the chosen one."""
    if case.prefix:
        for tiling in SHARED_TILINGS:
            yield f"shared {tuple(asdict(tiling).values())}", lambda step, call, t=tiling: _decode(step, call, None, t)
        yield "groups ignored", lambda step, call: _decode(step, call, None, None, follow=False)
    elif case.is_decode:
        for decode in DECODE_TILINGS[case.head_dim]:
            yield f"{tuple(asdict(decode).values())}", lambda step, call, t=decode: _decode(step, call, t, None)
    else:
        for extend in EXTEND_TILINGS[case.head_dim]:
            if not extend.copied or case.page_size >= extend.block_n:
                yield f"{tuple(asdict(extend).values())}", lambda step, call, t=extend: _extend(step, call, t)


_D, _S, _E = attention_decode.DecodeTiling, attention_shared.SharedTiling, attention_extend.ExtendTiling
DECODE_TILINGS = {
    64: (_D(64, 4, 3, 2), _D(128, 4, 3, 2), _D(128, 4, 3, 3), _D(64, 4, 4, 3), _D(128, 4, 4, 2)),
    128: (_D(64, 4, 3, 2), _D(64, 4, 3, 3), _D(64, 8, 3, 2), _D(128, 8, 3, 1), _D(64, 4, 4, 2), _D(32, 4, 4, 3)),
    256: (_D(32, 4, 3, 2), _D(64, 8, 3, 1), _D(32, 4, 4, 2), _D(64, 4, 3, 1), _D(32, 8, 3, 2), _D(32, 8, 3, 3)),
}
SHARED_TILINGS = (_S(64, 64, 4, 3), _S(64, 64, 4, 2), _S(128, 64, 8, 3), _S(128, 128, 8, 2), _S(64, 128, 4, 2))
EXTEND_TILINGS = {
    64: (_E(128, 64, 8, 3), _E(128, 128, 8, 3), _E(128, 64, 4, 3), _E(64, 64, 4, 3), _E(128, 64, 8, 3, True)),
    128: (
        _E(128, 64, 8, 3), _E(128, 128, 8, 2), _E(64, 64, 4, 3), _E(64, 128, 4, 2),
        _E(128, 64, 8, 3, True), _E(128, 128, 8, 2, True), _E(128, 128, 8, 3, True),
    ),
    256: (_E(64, 32, 4, 2), _E(64, 64, 4, 2), _E(128, 32, 8, 2), _E(128, 64, 8, 2), _E(128, 64, 8, 2, True)),
}  # fmt: skip


def _inputs(step: Step, call: tuple[Tensor | float | None, ...]) -> tuple[AttentionInputs, Tensor]:
    q, cache, starts, contexts, table, *_, scale, window = call
    return AttentionInputs(q, cache, starts, contexts, table, scale, window, step.shape), q.new_empty(
        q.shape[0], q[0].numel()
    )


def _decode(step, call, tiling, shared_tiling, follow=True) -> Tensor:  # type: ignore[no-untyped-def]
    (inputs, out), num_rows = _inputs(step, call), step.shape.num_rows
    prefix = None
    if follow and step.case.prefix:
        prefix = attention_shared.attend_shared(inputs, *call[5:8], num_rows=num_rows, tiling=shared_tiling)
    row_prefix = prefix.row_prefix if prefix else None
    partials = attention_decode.decode(
        inputs, out, num_rows=num_rows, max_query_len=1, row_prefix=row_prefix, tiling=tiling
    )
    merge(inputs, out, partials, prefix, num_rows=num_rows, max_query_len=1)
    return out


def _extend(step, call, tiling) -> Tensor:  # type: ignore[no-untyped-def]
    return attention_extend.extend(_inputs(step, call)[0], first_row=0, tiling=tiling)


def error(step: Step, attend: Attend) -> float:
    """Largest error over the largest value against the op's reference, on up to four rows; rows are independent."""
    got = attend(step, step.calls[0])
    q, cache, starts, contexts, table, *groups, scale, window = step.calls[0]
    rows = sorted({0, len(contexts) // 3, len(contexts) // 2, len(contexts) - 1})
    worst = 0.0
    for row in rows:
        start, stop = int(starts[row]), int(starts[row + 1])
        first = max(start, stop - 32)  # the last queries: they see every key
        alone = torch.tensor([0, stop - first], device=q.device)
        want = op(
            q[first:stop], cache, alone, contexts[row : row + 1], table[row : row + 1], *groups, scale, window
        ).float()
        difference = (got[first:stop].float() - want).abs().max() / want.abs().max()
        worst = max(worst, float(difference)) if bool(torch.isfinite(difference)) else float("inf")
    return worst


def time_us(step: Step, attend: Attend) -> float:
    """Median microseconds a call, from replays of a graph of one call for each cache."""
    for call in step.calls[:2]:
        attend(step, call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in step.calls:
            attend(step, call)
    times = []
    for _ in range(REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / len(step.calls))
    return median(times[2:])


def measure(step: Step, name: str, attend: Attend) -> dict[str, object]:
    """Time, error and launch cost of one way to do a case; prints its line."""
    case, wrong, us = step.case, error(step, attend), time_us(step, attend)
    host, flag = host_us(step, attend), "" if wrong < TOLERANCE else "  WRONG"
    print(
        f"{case.name:36} {name:26} {us:8.1f} us {case.rate(us)} {case.floor_us / us:5.0%} of floor"
        f"  err {wrong:.1e}  host {host:.0f} us{flag}",
        flush=True,
    )
    values = {"variant": name, "us": us, "floor_us": case.floor_us, "error": wrong, "host_us": host}
    return {"case": case.name, "page_size": case.page_size, **values}


def ways(case: Case, tune: bool) -> list[tuple[str, Attend]]:
    """Ours, the peer where it is installed, other tilings if asked for."""
    found = [("chosen", ours)]
    if capabilities() and not case.deterministic:
        found.append(("flash_attention3", peer))
    return [*found, *(variants(case) if tune else ())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="time other tilings too")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--write", action="store_true", help="write rows to bench/results")
    parser.add_argument("--compile", metavar="I/N", help="compile every N-th variant from the I-th, time nothing")
    options = parser.parse_args()
    part, parts = (int(x) for x in (options.compile or "0/1").split("/"))
    results, counter = [], 0
    for case in cases():
        step = None
        for name, attend in ways(case, options.tune) if options.only in case.name else ():
            counter += 1
            if counter % parts != part:
                continue
            step = step or make_step(case)
            if options.compile:
                attend(step, step.calls[0])
            else:
                results.append(measure(step, name, attend))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        write_rows(results)
    return 0


def write_rows(results: Sequence[dict[str, object]]) -> None:
    """The chosen kernels beside FlashAttention-3 as rows in bench/results."""
    import msgspec

    from bench import rows

    def series(variant: str, engine: str) -> list[rows.Series]:
        return [
            rows.Series(workload=str(one["case"]), metric="attention", unit="us", engine=engine, values=(one["us"],))
            for one in results
            if one["variant"] == variant
        ]

    versions = {"torch": str(torch.__version__), "triton": str(triton.__version__)}
    context = rows.Context(
        machine=torch.cuda.get_device_name(),
        command=" ".join(["python -m bench.gpu_attention", *sys.argv[1:]]),
        versions=versions,
        date=rows.now(),
        commit=rows.current_commit(),
    )
    floors = {str(one["case"]): one["floor_us"] for one in results}
    made = rows.make_rows(
        series("chosen", "phloem"), series("flash_attention3", "flash_attention3"), floors={}, context=context
    )
    made = [msgspec.structs.replace(row, floor=floors[row.workload]) for row in made]
    every = [*series("chosen", "phloem"), *series("flash_attention3", "flash_attention3")]
    print(rows.write(made, every, workload="gpu_attention"))


if __name__ == "__main__":
    sys.exit(main())
