"""Steps of few rows on a GPU: `python -m bench.gpu_rows [rows] [layer]` on a machine with one.

    rows     the products of kernels/triton/row_linear.py at every tiling, beside cuBLAS, one row
    layer    a whole layer, fused and not, 1 to 4 rows at context 1,024: what graph/lower/small.py's MAX_ROWS comes from

Launches are captured and replayed over more weights than the cache holds. TB/s counts weights, or keys and values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from bench.gpu_ops import SHAPES, microseconds
from phloem.graph.ops.model import frequencies
from phloem.kernels.triton import row_linear
from phloem.kernels.triton.activation import silu_mul
from phloem.kernels.triton.attention import paged_attention
from phloem.kernels.triton.attention_shape import AttentionShape
from phloem.kernels.triton.linear import linear
from phloem.kernels.triton.norm import add_rms_norm
from phloem.kernels.triton.rope import rope_kv_write
from phloem.kernels.triton.row_attention import RopeAttention
from phloem.kernels.triton.row_linear import RowTiling, linear_add, norm_gated_linear, norm_linear

DEVICE = torch.device("cuda")
CACHE_BYTES = 300e6  # weights to rotate through, several times the L2
EPS, CONTEXT, PAGE = 1e-6, 1024, 32
TILINGS = [RowTiling(*each) for each in (
    (2, 1024, 4), (4, 1024, 4), (8, 1024, 4), (16, 1024, 4), (8, 1024, 8), (8, 512, 4), (16, 512, 4), (4, 2048, 8),
)]  # fmt: skip

Launch = Callable[[], object]


class Layer:
    """The weights of some layers of one shape, and the tensors of a step of `num_rows` rows."""

    def __init__(self, model: str, num_rows: int) -> None:
        self.hidden, self.inner, self.num_heads, self.num_kv_heads, self.head_dim = SHAPES[model]
        self.num_rows = num_rows
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.sizes = {
            "qkv": (width, self.hidden),
            "o": (self.hidden, self.num_heads * self.head_dim),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }
        layer_bytes = 2 * sum(rows * columns for rows, columns in self.sizes.values())
        self.copies = max(2, round(CACHE_BYTES / layer_bytes))
        self.weights = [{name: weight(*size) for name, size in self.sizes.items()} for _ in range(self.copies)]
        self.norm, self.head_norm = random(self.hidden), random(self.head_dim)
        self.residual = random(num_rows, self.hidden).float()
        self.qkv = random(num_rows, width)
        self._attention()

    def _attention(self) -> None:
        def ints(values: torch.Tensor) -> torch.Tensor:
            return values.to(DEVICE, torch.int32)

        rows, pages = self.num_rows, CONTEXT // PAGE
        self.table = ints(torch.randperm(rows * pages).view(rows, pages))
        self.slots = self.table[:, -1] * PAGE + PAGE - 1
        self.positions = ints(torch.full((rows,), CONTEXT - 1))
        self.meta = (ints(torch.arange(rows + 1)), ints(torch.full((rows,), CONTEXT)), self.table,
                     *(ints(torch.zeros(size)) for size in (1, 0, 0)))  # fmt: skip
        self.freq = frequencies(self.head_dim, 1e6).to(DEVICE)
        self.cache = random(rows * pages, 2, PAGE, self.num_kv_heads, self.head_dim)
        self.shape = AttentionShape(rows, rows, rows, 1, 4096)
        self.rope_attention = RopeAttention(DEVICE)

    @property
    def rope(self) -> tuple[Any, ...]:
        return (self.head_norm, self.head_norm, EPS, self.positions, self.slots, self.freq, self.cache)

    def fused(self) -> None:
        """The layers as graph/lower/small.py has them."""
        stream = self.residual
        for each in self.weights:
            qkv = norm_linear(stream, self.norm, EPS, each["qkv"], None)
            out = self.rope_attention(qkv, *self.rope, *self.meta, self.head_dim**-0.5, shape=self.shape)
            stream = linear_add(out, each["o"], None, stream)
            stream = linear_add(norm_gated_linear(stream, self.norm, EPS, each["gate_up"]), each["down"], None, stream)

    def lowered(self) -> None:
        """The layers as the lowered graph has them."""
        stream, x = self.residual, self.residual.bfloat16()
        for each in self.weights:
            y, stream = add_rms_norm(x, stream, self.norm, EPS)
            q = rope_kv_write(linear(y, each["qkv"]), *self.rope)
            out = paged_attention(q, self.cache, *self.meta, self.head_dim**-0.5, shape=self.shape)
            y, stream = add_rms_norm(linear(out, each["o"]), stream, self.norm, EPS)
            x = linear(silu_mul(linear(y, each["gate_up"])), each["down"])

    def attention(self) -> None:
        """Only what rope_attention does, over and over."""
        for _ in self.weights:
            self.rope_attention(self.qkv, *self.rope, *self.meta, self.head_dim**-0.5, shape=self.shape)

    def num_bytes(self, name: str) -> int:
        rows, columns = self.sizes[name]
        return 2 * rows * columns


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).bfloat16()


def weight(rows: int, columns: int) -> torch.Tensor:
    return random(rows, columns) * columns**-0.5


def main(parts: Sequence[str]) -> int:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    known = {"rows": time_rows, "layer": time_layers}
    for name, part in known.items():
        if not parts or name in parts:
            for model in SHAPES:
                part(model)
                torch.cuda.empty_cache()
    return 0


def fastest(label: str, num_bytes: int, copies: int, cases: Sequence[tuple[str, Launch]]) -> str:
    """Time all, print a line each, return the name of the fastest."""
    works = []
    with ThreadPoolExecutor(12) as compilers:  # most of the time goes into compiling
        for (name, launch), error in zip(cases, compilers.map(_fails, [launch for _, launch in cases])):
            if error:
                print(f"{label:22} {name:34} {error}")
            else:
                works.append((name, launch))
    timed = sorted((microseconds(launch, launches=3, replays=9) / copies, name) for name, launch in works)
    for time_us, name in timed:
        print(f"{label:22} {name:34} {time_us:8.2f} us {num_bytes / time_us * 1e-6:5.2f} TB/s", flush=True)
    return timed[0][1]


def _fails(launch: Launch) -> str | None:
    try:
        launch()
        torch.cuda.synchronize()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:120]
    return None


def time_rows(model: str) -> None:
    """One row: every product at every tiling, and cuBLAS alone."""
    layer = Layer(model, 1)
    for name, (rows, columns) in layer.sizes.items():
        gated, adds = name == "gate_up", name in ("o", "down")
        x = layer.residual if not adds else random(1, columns)
        y = torch.empty(1, rows // (2 if gated else 1), device=DEVICE, dtype=torch.float32 if adds else torch.bfloat16)
        weights = [each[name] for each in layer.weights]
        more = {"residual": layer.residual} if adds else {"gain": layer.norm, "eps": EPS, "gated": gated}

        def run(tiling: RowTiling, x=x, y=y, weights=weights, more=more) -> None:
            for each in weights:
                row_linear._launch(x, each, y, tiling=tiling, **more)

        def library(x=x, weights=weights) -> None:
            rounded = x.bfloat16()
            for each in weights:
                linear(rounded, each)

        cases: list[tuple[str, Launch]] = [(str(each)[9:], partial(run, each)) for each in TILINGS]
        fastest(f"{model} {name}", layer.num_bytes(name), len(weights), [*cases, ("cuBLAS, product only", library)])


def time_layers(model: str) -> None:
    """A layer with attention, both ways; then its attention alone, whose keys are in the cache here."""
    for num_rows in (1, 2, 3, 4):
        layer = Layer(model, num_rows)
        num_bytes = sum(map(layer.num_bytes, layer.sizes))
        cases: list[tuple[str, Launch]] = [("fused", layer.fused), ("lowered", layer.lowered)]
        fastest(f"{model} layer, {num_rows} rows", num_bytes, layer.copies, cases)
        kv_bytes = num_rows * CONTEXT * layer.cache[0, :, 0].nbytes
        fastest(f"{model} attention, {num_rows} rows", kv_bytes, layer.copies, [("fused", layer.attention)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
